"""Where the limits of `varco verify --numerics` come from: errors of good bundles and of broken ones.

    python -m benchmarks.probe_limits                              # random checkpoints, gentle and wild
    python -m benchmarks.probe_limits --checkpoint models/varco-tiny

Exports each checkpoint at every precision with its probes, replays them, breaks one thing at a time
(`tests/makers/broken.py`) and replays again. Gentle weights behave like trained ones; wild ones (the default `Scales`)
amplify every error. Prints a line per bundle and ends with one JSON line: per precision the largest error of a good
bundle and the least that a broken one shows where it is broken, in units of the limit. Exit status 1 when a limit does
not lie between the two.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from benchmarks.document import add_out, finish
from tests.makers import broken
from tests.makers.probes import GENTLE
from varco_export.export import ExportOptions, export
from varco_export.progress import Silent
from varco_export.tiny import Scales, TinyOptions, make_tiny
from varco_runtime.backends.cpu.backend import OnnxRuntimeBackend
from varco_runtime.bundle.opening import Bundle
from varco_runtime.probes.replay import Check, read_probes, replay

SHAPES = {
    "2 layers": TinyOptions(seed=1, image_size=114),
    "4 layers": TinyOptions(
        seed=2, image_size=114, num_hidden_layers=4, hidden_size=128, intermediate_size=320, vocab_size=700
    ),
    "12 layers": TinyOptions(seed=4, image_size=114, num_hidden_layers=12),
}
PRECISIONS: dict[str, dict[str, str]] = {
    "fp32": {"decoder": "fp32"},
    "fp16": {"decoder": "fp16", "vision": "fp16"},
    "int8": {"decoder": "int8"},
    "int8, int8 activations": {"decoder": "int8", "activations": "int8"},
    "int4": {"decoder": "int4"},
    "int4, int8 activations": {"decoder": "int4", "activations": "int8"},
    "int4, int8 vision": {"decoder": "int4", "vision": "int8"},
    "fast": {"decoder": "int4", "activations": "int8", "block_size": "128", "lm_head": "int4", "vision": "int8"},
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Errors of good and of broken bundles.")
    parser.add_argument("--checkpoint", type=Path, help="measure on this one instead of on random ones")
    add_out(parser)
    options = parser.parse_args()
    summary: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="probe-limits-") as name:
        for label, checkpoint in _checkpoints(Path(name), options.checkpoint):
            for precision, given in PRECISIONS.items():
                _measure(Path(name), label, checkpoint, precision, given, summary)
    worst = {name: {"good": max(row["good"]), "broken": min(row["broken"])} for name, row in summary.items()}
    finish({"benchmark": "probe_limits", "errors_in_limits": worst}, options.out)
    return 0 if all(row["good"] < 1 < row["broken"] for row in worst.values()) else 1


def _checkpoints(folder: Path, given: Path | None) -> Iterator[tuple[str, Path]]:
    if given is not None:
        yield given.name, given
        return
    for scales, kind in ((GENTLE, "gentle"), (Scales(), "wild")):
        for shape, options in SHAPES.items():
            path = folder / f"{kind}-{options.seed}"
            values = {name: getattr(options, name) for name in TinyOptions.__slots__} | {"scales": scales}
            yield f"{kind}, {shape}", make_tiny(path, TinyOptions(**values))


def _measure(
    folder: Path,
    label: str,
    checkpoint: Path,
    precision: str,
    given: dict[str, str],
    summary: dict[str, dict[str, list[float]]],
) -> None:
    """One checkpoint at one precision, good and with each fault; adds errors in units of their limits to `summary`."""
    row = summary.setdefault(precision, {"good": [], "broken": []})
    with tempfile.TemporaryDirectory(dir=folder) as name:
        good = Path(name) / "good"
        options = {name: int(value) if value.isdigit() else value for name, value in given.items()}
        export(checkpoint, good, ExportOptions(probes=True, **options), Silent())  # type: ignore[arg-type]
        checks = _checks(good)
        _print(label, precision, "good", checks)
        row["good"].append(max(map(_in_limits, checks)))
        for fault, component in broken.FAULTS.items():
            if (precision.startswith("fp") and fault in broken.OF_INTEGERS) or (
                precision == "fp16" and fault in broken.SUBTLE
            ):
                continue
            checks = _checks(broken.broken(good, Path(name) / fault.__name__, fault))
            _print(label, precision, fault.__name__, checks)
            row["broken"].append(max(_in_limits(check) for check in checks if check.component == component))


def _checks(folder: Path) -> list[Check]:
    bundle = Bundle.open(folder)
    probes = read_probes(bundle)
    return replay(bundle, probes, OnnxRuntimeBackend(bundle, probes.max_tokens, threads=1))


def _in_limits(check: Check) -> float:
    if check.limit is None:  # a grade: the model's own business
        return 0.0
    # A number of differences, none of which is allowed, counts as far beyond its limit.
    return check.error / check.limit if check.limit else 1e9 * (check.error > 0)


def _print(label: str, precision: str, what: str, checks: list[Check]) -> None:
    errors = "  ".join(f"{check.component} {check.error:.1e} of {check.limit or 0:.0e}" for check in checks)
    print(f"{label:18} {precision:24} {what:28} {errors}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
