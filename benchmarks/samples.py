"""How many calibration samples are enough: KL of `varco quantize`, over how many tokens it was calibrated with.

    python -m benchmarks.samples models/varco-tiny --pictures 12 48 192 --own 64 256 --out benchmarks/samples.json
    python -m benchmarks.samples --text CHECKPOINT NOISY --documents 6 24 --out benchmarks/samples.json

Curves are added to what FILE holds, so that they may be measured one by one. Of a checkpoint with pictures: calibrated
with pictures of the kind that it is measured on (`--pictures`, benchmarks.calibration), and with the project's own
samples (`--own`), a domain apart; KL is that of benchmarks.quality on held-out pictures. Of a language model: documents
of the machine, KL by benchmarks.rounding, whose further options go behind `--rounding`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.calibration import make_calibration
from benchmarks.divergence import distance
from benchmarks.document import add_out, finish
from benchmarks.quality import Recorder, divergence
from training.evaluate import evaluate
from training.pictures import held_out_seeds
from varco_export.export import ExportOptions, export
from varco_export.progress import SILENT, Silent
from varco_export.quantize import QuantizeOptions, quantize
from varco_runtime import Varco
from varco_runtime.dtypes import Array

SAME, OWN, TEXT = "varco-tiny, the same kind", "varco-tiny, project's own", "text, documents"


class Yardstick:
    """Answers of the unrounded model to questions about held-out pictures, and the logits that they came of."""

    def __init__(self, checkpoint: Path, num_pictures: int, scratch: Path) -> None:
        self._checkpoint, self._scratch = checkpoint, scratch
        self._exact = Recorder(self._exported(checkpoint, "exact"))
        evaluate(self._exact.answer, held_out_seeds(num_pictures))
        self._logits = self._scores(self._exact.varco)

    def measure(self, options: QuantizeOptions, name: str) -> dict[str, Any]:
        """Return the figures of the checkpoint quantized with some options."""
        made = quantize(self._checkpoint, self._scratch / f"{name}-checkpoint", options, SILENT)
        scores = self._scores(self._exported(made.folder, name))
        figures, _ = distance([divergence(ours, theirs) for ours, theirs in zip(self._logits, scores, strict=True)])
        return {"samples": made.num_samples, "tokens": made.num_tokens, **figures}

    def _exported(self, checkpoint: Path, name: str) -> Varco:
        export(checkpoint, self._scratch / name, ExportOptions(), Silent())
        return Varco.load(self._scratch / name)

    def _scores(self, varco: Varco) -> list[Array]:
        asked = zip(self._exact.asked, self._exact.token_ids, strict=True)
        return [varco.score(image, prompt, token_ids) for (image, prompt), token_ids in asked]


def measure_pictures(given: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Return the curves of a checkpoint with pictures."""
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        yardstick = Yardstick(given.checkpoint, given.held_out, scratch)
        for number in given.pictures:
            calibration = make_calibration(scratch / f"pictures-{number}", number)
            options = QuantizeOptions("gptq", calibration, max_samples=10_000)
            found.setdefault(SAME, []).append(yardstick.measure(options, f"same-{number}"))
            print(SAME, number, found[SAME][-1], flush=True)
        for number in given.own:
            options = QuantizeOptions("gptq", max_samples=number)
            found.setdefault(OWN, []).append(yardstick.measure(options, f"own-{number}"))
            print(OWN, number, found[OWN][-1], flush=True)
    return found


def measure_text(given: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Return the curve of a language model."""
    from benchmarks.rounding import make_parser, measure

    points: list[dict[str, Any]] = []
    for number in given.documents:
        kls, num_tokens = measure(
            make_parser().parse_args([*map(str, given.text), "--documents", str(number), *given.rounding])
        )
        points.append({"samples": number, "tokens": num_tokens, "kl": kls[""]})
        print(TEXT, points[-1], flush=True)
    return {" ".join([TEXT, *given.rounding]): points}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="KL over the number of calibration samples.")
    parser.add_argument("checkpoint", type=Path, nargs="?", help="with pictures; needed for --pictures and --own")
    parser.add_argument("--pictures", type=int, nargs="*", default=[], metavar="N")
    parser.add_argument("--own", type=int, nargs="*", default=[], metavar="N")
    parser.add_argument("--held-out", type=int, default=120, metavar="N", help="pictures to measure on")
    parser.add_argument("--text", type=Path, nargs=2, metavar=("CHECKPOINT", "NOISY"))
    parser.add_argument("--documents", type=int, nargs="*", default=[], metavar="N")
    parser.add_argument("--rounding", nargs=argparse.REMAINDER, default=[], help="options of benchmarks.rounding")
    add_out(parser)
    given = parser.parse_args(arguments)
    curves: dict[str, Any] = {}
    if given.out is not None and given.out.exists():
        curves = json.loads(given.out.read_text(encoding="utf-8"))["curves"]
    if given.pictures or given.own:
        curves |= measure_pictures(given)
    if given.documents:
        curves |= measure_text(given)
    finish({"benchmark": "samples", "held_out_pictures": given.held_out, "curves": curves}, given.out)


if __name__ == "__main__":
    main()
