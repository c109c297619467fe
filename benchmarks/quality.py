"""How well bundles read, and how far they are from full precision, token by token: on drawn or on your own pictures.

    python -m benchmarks.quality models/varco-tiny BUNDLE [BUNDLE ...] --pictures 200 --out quality.json
    python -m benchmarks.quality CHECKPOINT BUNDLE [BUNDLE ...] --images FOLDER --out quality.json

The first argument is the checkpoint; it is exported to fp32 here, which is the reference that the divergences are taken
against (`--reference` names a bundle that is there already). Every model answers the same questions.

`--openvino fp32 auto/u8` measures every bundle on OpenVINO too, with these precisions and formats of the cache.

Without `--images` the pictures are drawn from seeds that training never sees, and the figures are those of
`training.evaluate`; `--transformers` also measures the checkpoint through transformers. With it, FOLDER holds pictures,
and questions in `calibration.jsonl` if there is one, as for `varco quantize`; `folder_quality.py` says what is counted.
Both ways:

- `kl`: mean KL divergence in nats, per token of the reference's answer under teacher forcing (KL(reference || model));
- `top1_agreement`: share of those tokens at which both models' most likely token is the same;
- `exact_answers`: share of answers that are the reference's to the letter;
- `bundle_bytes`, `bytes_per_token`: size on disk, and the weights one decode step reads.

Standard errors of KL are those of a ratio of sums over answers, since the tokens of one answer are not independent.
Differences between precisions are per token too, and paired by answer (`kl_gain` against the first bundle), where the
noise of the pictures cancels.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.divergence import ByAnswer, distance, divergence
from benchmarks.document import add_out, finish
from benchmarks.folder_quality import Candidate, measure_folder
from training.evaluate import evaluate, transformers_answer
from training.pictures import held_out_seeds
from varco_export.export import ExportOptions, export
from varco_export.progress import Silent
from varco_export.quantize.calibration import read_samples
from varco_runtime import Varco
from varco_runtime.bundle.opening import read_manifest
from varco_runtime.errors import UsageError, VarcoError

MAX_NEW_TOKENS = 160
FULL_PRECISIONS = ("fp32", "fp16", "bf16")


@dataclass(slots=True)
class Recorder:
    """Answers of one bundle, kept by question, so that another bundle can be scored on the same tokens."""

    varco: Varco
    max_new_tokens: int = MAX_NEW_TOKENS
    asked: list[tuple[Image.Image, str]] = field(default_factory=list)
    token_ids: list[tuple[int, ...]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def answer(self, image: Image.Image, prompt: str) -> str:
        answer = self.varco.ask(image, prompt, max_new_tokens=self.max_new_tokens)
        self.asked.append((image, prompt))
        self.token_ids.append(answer.token_ids)
        self.texts.append(answer.text)
        return answer.text


def measure_bundle(
    bundle: Candidate, seeds: Iterable[int], reference: Recorder | None, max_new_tokens: int = MAX_NEW_TOKENS
) -> tuple[dict[str, Any], Recorder, ByAnswer | None]:
    """A bundle's figures; with a reference also its distance, and the KL of each answer."""
    recorder = Recorder(bundle.load(), max_new_tokens)
    started = time.perf_counter()
    figures = evaluate(recorder.answer, seeds).report()
    figures["answers_s"] = time.perf_counter() - started
    manifest = read_manifest(bundle.path)
    figures["precision"] = manifest.decoder.precision
    figures["bundle_bytes"] = sum(facts.size for facts in manifest.files.values())
    figures["bytes_per_token"] = manifest.decoder.weight_bytes
    kl_by_answer = None
    if reference is not None:
        distances = []
        for (image, prompt), token_ids in zip(reference.asked, reference.token_ids, strict=True):
            expected = reference.varco.score(image, prompt, token_ids)
            distances.append(divergence(expected, recorder.varco.score(image, prompt, token_ids)))
        found, kl_by_answer = distance(distances)
        figures |= found
        figures["exact_answers"] = float(
            np.mean([a == b for a, b in zip(recorder.texts, reference.texts, strict=True)])
        )
    return figures, recorder, kl_by_answer


COLUMNS = (
    ("word_accuracy", "words right", "{:.1%}"),
    ("word_accuracy_error", "±", "{:.1%}"),
    ("character_error_rate", "CER", "{:.2%}"),
    ("mean_iou", "IoU", "{:.3f}"),
    ("grounding_accuracy", "grounding", "{:.1%}"),
    ("referring_accuracy", "referring", "{:.1%}"),
    ("kl", "KL, nats/token", "{:.5f}"),
    ("kl_error", "±", "{:.5f}"),
    ("top1_agreement", "top-1", "{:.2%}"),
    ("exact_answers", "same answer", "{:.1%}"),
    ("bundle_bytes", "bundle, MB", "{:.1f}"),
    ("bytes_per_token", "read per token, MB", "{:.1f}"),
)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Results as a Markdown table, without the columns that no model has."""
    columns = [column for column in COLUMNS if any(figures.get(column[0]) is not None for figures in results.values())]
    lines = ["| model | " + " | ".join(title for _, title, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, figures in results.items():
        cells = []
        for key, _, style in columns:
            value = figures.get(key)
            value = value / 1e6 if "bytes" in key and value is not None else value
            cells.append("" if value is None else style.format(value))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def named(bundles: Iterable[Path], openvino: Iterable[str] = ()) -> dict[str, Candidate]:
    """Bundles by the name of their folder, or by their path where two share it; each by OpenVINO too, if asked for.

    Args:
        bundles: Their folders.
        openvino: Ways to compute: `fp32`, or `auto/u8` with the format of the cache.
    """
    found: dict[str, Candidate] = {}
    for bundle in bundles:
        name = str(bundle) if bundle.name in found or bundle.name == "fp32" else bundle.name
        found[name] = Candidate(bundle)
        for way in openvino:
            precision, _, cache = way.partition("/")
            options = {"provider": "openvino", "precision": precision, "kv_cache_precision": cache or "auto"}
            found[f"{name} openvino {way}"] = Candidate(bundle, options)
    return found


def measure_drawn(
    reference: Path, bundles: dict[str, Candidate], options: argparse.Namespace
) -> tuple[dict[str, dict[str, Any]], dict[str, ByAnswer]]:
    """Figures on held-out pictures, and the KL of each answer by bundle."""
    seeds = held_out_seeds(options.pictures, options.start)
    results: dict[str, dict[str, Any]] = {}
    results["fp32"], recorder, _ = measure_bundle(Candidate(reference), seeds, None, options.max_new_tokens)
    kls: dict[str, ByAnswer] = {}
    for name, bundle in bundles.items():
        results[name], _, kl = measure_bundle(bundle, seeds, recorder, options.max_new_tokens)
        assert kl is not None, "Bug: no distance though there is a reference"
        kls[name] = kl
    if options.transformers:
        texts: list[str] = []
        ask = transformers_answer(options.checkpoint, options.max_new_tokens)

        def answer(image: Image.Image, prompt: str) -> str:
            texts.append(ask(image, prompt))
            return texts[-1]

        results["transformers"] = evaluate(answer, seeds).report()
        same = [a == b for a, b in zip(texts, recorder.texts, strict=True)]
        results["transformers"]["exact_answers"] = float(np.mean(same))
    return results, kls


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All figures by model. What is exported for them is removed again."""
    with tempfile.TemporaryDirectory() as folder:

        def exported(name: str, **choices: Any) -> Path:
            export(options.checkpoint, Path(folder) / name, ExportOptions(**choices), Silent())
            return Path(folder) / name

        reference = options.reference or exported("fp32")
        precision = read_manifest(reference).decoder.precision
        if precision not in FULL_PRECISIONS:
            raise UsageError(
                f"{options.reference or options.checkpoint} holds {precision}, expected a reference in full precision. "
                "Give the checkpoint that it was made from."
            )
        bundles = named(
            options.bundles
            or [
                exported("int8", decoder="int8"),
                exported("int4", decoder="int4"),
                exported("int4-int8-activations", decoder="int4", activations="int8"),
            ],
            options.openvino,
        )
        if options.images is None:
            results, kls = measure_drawn(reference, bundles, options)
        else:
            known = read_manifest(reference).prompt.markup_tokens
            samples = read_samples(options.images, known, options.max_samples)
            (scratch := Path(folder) / "logits").mkdir()
            results, kls = measure_folder(reference, bundles, samples, scratch, options.max_new_tokens)
    first = next(iter(kls.values()))
    for name, kl in kls.items():
        gain, error = first.gain(kl)
        results[name] |= {"kl_gain": gain, "kl_gain_error": error}
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table on stdout, write the JSON document where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundles", type=Path, nargs="*", help="bundles of the same checkpoint; default: int8 and int4")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="your own pictures instead of drawn ones")
    parser.add_argument("--max-samples", type=int, default=200, help="questions taken of FOLDER, spread evenly")
    parser.add_argument("--reference", type=Path, metavar="BUNDLE", help="the full-precision bundle; default: exported")
    parser.add_argument("--pictures", type=int, default=200, help="held-out pictures to draw")
    parser.add_argument("--start", type=int, default=0, help="first held-out picture")
    parser.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS)
    parser.add_argument(
        "--openvino",
        nargs="+",
        default=[],
        metavar="PRECISION[/CACHE]",
        help="every bundle by OpenVINO too: fp32 auto/u8",
    )
    parser.add_argument("--transformers", action="store_true", help="also measure the checkpoint through transformers")
    add_out(parser)
    options = parser.parse_args(arguments)
    if options.transformers and options.images:
        parser.error("--transformers takes drawn pictures, not --images")
    try:
        results = measure(options)
    except VarcoError as error:
        raise SystemExit(f"error: {error}") from None
    print(table(results))
    judges = {figures["judged_by"] for figures in results.values() if "judged_by" in figures}
    for judge in judges:
        print(f"\nWords, characters and boxes are compared with {judge}; KL, top-1 and same answer with fp32.")
    finish(results, options.out)


if __name__ == "__main__":
    main()
