"""Speed and memory of full-size models on this device, beside the device's own limits and beside transformers.

    python -m benchmarks.device                                # the 14B and the 0.5B on CUDA in bf16, int4 and FP8
    python -m benchmarks.device --shape 0.5b --decoder fp16
    python -m benchmarks.device --steps limits                 # one step, added to the report of others
    python -m benchmarks.device --steps profile --shape 14b --decoder int4    # where the time of a missed aim goes
    python -m benchmarks.device --shape tiny --provider cpu    # tries the script itself

Steps: `limits` (copy bandwidth and matrix rate through onnxruntime), `models` (one precision at a time, its bundle made
on the spot and deleted before the next), `transformers` (left out with a reason where it cannot be imported), and, if
asked for, `profile`. Each runs in a process of its own and adds to the same JSON file, which begins anew for other
settings or another machine. What is there is not measured again without `--again`; what was left out is. A step that
would begin later than `--budget-s` is left out, and the same command goes on there. Free disk is checked before
anything is written. The weights are random, so only times count.

The limit of a decode step are the bytes that it must read over the measured copy bandwidth; that of vision and prefill
are their operations over the measured matrix rate.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.limits import measure_limits
from benchmarks.gpu.model import bundle_bytes, bundle_path, model_options, remove
from benchmarks.gpu.peer import measure_transformers
from benchmarks.gpu.process import run_apart
from benchmarks.gpu.profile import profile_kernels, profile_operators
from benchmarks.gpu.report import at, begun, is_missing, save
from benchmarks.gpu.stages import Setup, measure_model
from benchmarks.gpu.table import table
from varco_runtime.errors import UsageError, VarcoError

STEPS = ("limits", "models", "profile", "transformers")
SHAPES = ("tiny", "0.5b", "7b", "14b")
DECODERS = {"cuda": ["int4", "fp8", "bf16"], "cpu": ["fp16", "int4"]}
"""By default: the CPU has no kernels for bf16 and FP8."""
MAX_CONTEXT = {"cuda": 10_240, "cpu": 2048}
LEAST_CONTEXT = 128
PEER_DTYPE = {"cuda": "bf16", "cpu": "fp32"}
SPARE_BYTES = 3 << 30
"""Free disk beyond the largest bundle: 34 GB in all for the 14B in 16 bits."""
STOP_AFTER_S = 300
"""How much longer than the budget a step may run before it counts as stuck."""


def main() -> int:
    options = _parser().parse_args()
    options.decoder = options.decoder or DECODERS[options.provider]
    options.max_context = options.max_context or MAX_CONTEXT[options.provider]
    options.peer_dtype = options.peer_dtype or PEER_DTYPE[options.provider]
    try:
        _check(options)
        _check_disk(options)
        run = Run(options)
        run.all()
    except VarcoError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename}: {error.strerror}. Choose another --out or --folder.", file=sys.stderr)
        return 1
    print("\n".join(table(run.report)))
    print(json.dumps(run.report))
    return 0


class Run:
    """The steps that are asked for, one after the other, and the report that they fill."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._started = time.monotonic()
        self.report = begun(
            options.out,
            {"provider": options.provider, "max_context": options.max_context, "peer_dtype": options.peer_dtype},
        )
        options.folder.mkdir(parents=True, exist_ok=True)

    def all(self) -> None:
        """Every step. Those of the shapes in turn, so that a peer that takes long delays no model."""
        options = self._options
        if "limits" in options.steps:
            self._step(("limits",), 15, measure_limits, (options.provider, options.provider == "cpu"))
        for shape in options.shape:
            for decoder in options.decoder:
                self._model(shape, decoder)
        if "transformers" in options.steps:
            for shape in options.shape:
                self._transformers(shape)
        self._save()

    def _model(self, shape: str, decoder: str) -> None:
        """What is asked of one precision, and the removal of its bundle."""
        options = self._options
        setup = Setup(options.folder, shape, decoder, options.provider, options.max_context)
        seconds = 15 + 3 * bundle_bytes(shape, decoder) / 1e9  # written, hashed and loaded at 1 GB/s
        place = ("shapes", shape, "models", decoder)
        try:
            if "models" in options.steps:
                self._step(place, seconds, measure_model, (setup,))
            if "profile" in options.steps:
                place = ("shapes", shape, "profile", decoder)
                self._step((*place, "operators"), seconds, profile_operators, (setup,))
                self._step((*place, "kernels"), seconds, profile_kernels, (setup,))
        finally:
            if not options.keep:
                remove(bundle_path(options.folder, shape, decoder))

    def _transformers(self, shape: str) -> None:
        options = self._options
        setup = Setup(options.folder, shape, "", options.provider, options.max_context)
        place = ("shapes", shape, "transformers")
        former = {} if options.again else at(self.report, place)
        arguments = (setup, options.peer_dtype, former, max(0.0, self._left_s()))
        seconds = 30 + 3 * model_options(shape).num_hidden_layers  # a second per layer and compiled context
        self._step(place, seconds, measure_transformers, arguments, goes_on=True)

    def _step(
        self,
        place: tuple[str, ...],
        estimate_s: float,
        measure: Callable[..., None],
        arguments: tuple[Any, ...],
        goes_on: bool = False,
    ) -> None:
        """Fill one place of the report, unless it is full. With `goes_on` what it holds is kept."""
        name = " ".join(place).removeprefix("shapes ")
        figures = at(self.report, place)
        if figures and not self._options.again and not is_missing(figures):
            print(f"{name}: in the report already", file=sys.stderr, flush=True)
            return
        if self._left_s() <= 0:
            if not figures:
                figures["left_out"] = f"{self._options.budget_s:.0f} s were spent; the same command goes on here"
                self._save()
            print(f"{name}: left out, the budget is spent", file=sys.stderr, flush=True)
            return
        print(f"{name}: begins, some {estimate_s:.0f} s by a rough estimate", file=sys.stderr, flush=True)
        figures.pop("left_out", None)
        if not goes_on or self._options.again:
            figures.clear()

        def tell(part: tuple[str, ...], figure: Any) -> None:
            at(figures, part[:-1])[part[-1]] = figure
            self._save()

        started = time.monotonic()
        failure = run_apart(measure, arguments, tell, self._left_s() + STOP_AFTER_S)
        if failure is not None:
            figures["left_out"] = failure
        figures["step_s"] = round(time.monotonic() - started, 1)
        self._save()
        print(f"{name}: {failure or 'done'}, {figures['step_s']} s", file=sys.stderr, flush=True)

    def _left_s(self) -> float:
        return float(self._options.budget_s - (time.monotonic() - self._started))

    def _save(self) -> None:
        save(self._options.out, self.report)


def _check(options: argparse.Namespace) -> None:
    """Refuse what no step could be run with."""
    if options.max_context < LEAST_CONTEXT:
        raise UsageError(f"--max-context is {options.max_context}, expected {LEAST_CONTEXT} or more.")
    if not options.out.absolute().parent.is_dir():
        raise UsageError(f"{options.out} has no folder to lie in. Make it, or choose another --out.")


def _check_disk(options: argparse.Namespace) -> None:
    """One precision lies on the disk at a time, all of them with `--keep`; those that are there need no room."""
    if not {"models", "profile"} & set(options.steps):
        return
    sizes = [
        bundle_bytes(shape, decoder)
        for shape in options.shape
        for decoder in options.decoder
        if not bundle_path(options.folder, shape, decoder).exists()
    ]
    needed = (sum(sizes) if options.keep else max(sizes, default=0)) + SPARE_BYTES
    if set(options.shape) == {"tiny"} or not sizes:
        return
    there = next(folder for folder in (options.folder, *options.folder.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UsageError(
            f"{options.folder} has {free / 1e9:.1f} GB of free disk, expected {needed / 1e9:.1f} GB. Free some space, "
            "give another --folder, or measure less with --shape and --decoder."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure full-size models on this device.")
    parser.add_argument("--shape", nargs="+", default=["14b", "0.5b"], choices=SHAPES)
    parser.add_argument("--provider", default="cuda", choices=("cuda", "cpu"), help="cpu tries the script itself")
    parser.add_argument("--decoder", nargs="+", choices=("fp16", "bf16", "int8", "int4", "fp8"))
    parser.add_argument("--steps", nargs="+", default=[one for one in STEPS if one != "profile"], choices=STEPS)
    parser.add_argument("--max-context", type=int, help="positions of the caches, default 10,240, on the CPU 2,048")
    parser.add_argument("--peer-dtype", choices=("bf16", "fp16", "fp32"), help="default bf16, on the CPU fp32")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "varco-device", help="where there is room"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("device.json"), help="the report, added to if it is of this kind"
    )
    parser.add_argument("--budget-s", type=float, default=600, help="no step begins later than this many seconds")
    parser.add_argument("--again", action="store_true", help="measure what is in the report already")
    parser.add_argument("--keep", action="store_true", help="leave the bundles for the next run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
