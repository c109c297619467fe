"""How well models read: accuracy on held-out pictures, and how far a bundle is from full precision, token by token.

    python -m benchmarks.quality models/varco-tiny BUNDLE [BUNDLE ...] --pictures 200 --out quality.json

The pictures are drawn from seeds that training never sees; every model answers the same ones. The first argument is the
checkpoint; it is exported to fp32 here, which is the reference that the divergences are taken against. `--transformers`
also measures the checkpoint through transformers. Figures, beside those of `training.evaluate`:

- `kl`: mean KL divergence in nats, per token of the reference's answer under teacher forcing (KL(reference || model));
- `top1_agreement`: share of those tokens at which both models' most likely token is the same;
- `exact_answers`: share of answers that are the reference's to the letter;
- `bundle_bytes`, `bytes_per_token`: size on disk, and the weights one decode step reads.

KL's standard error is taken over pictures, since the tokens of one answer are not independent. Differences between
precisions are paired by picture (`kl_gain` against the second bundle), where the noise of the pictures cancels.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.evaluate import evaluate, transformers_answer
from training.pictures import held_out_seeds
from varco_export.export import ExportOptions, Silent, export
from varco_runtime import Varco
from varco_runtime.bundle import read_manifest

Array = np.ndarray[Any, Any]
MAX_NEW_TOKENS = 160


@dataclass(slots=True)
class Recorder:
    """Answers of one bundle, kept by question, so that another bundle can be scored on the same tokens."""

    varco: Varco
    asked: list[tuple[Image.Image, str]] = field(default_factory=list)
    token_ids: list[tuple[int, ...]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def answer(self, image: Image.Image, prompt: str) -> str:
        answer = self.varco.ask(image, prompt, max_new_tokens=MAX_NEW_TOKENS)
        self.asked.append((image, prompt))
        self.token_ids.append(answer.token_ids)
        self.texts.append(answer.text)
        return answer.text


def log_softmax(logits: Array) -> Array:
    """Row by row, in fp64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def divergence(reference: Array, logits: Array) -> tuple[Array, Array]:
    """KL(reference || model) in nats and top-1 agreement, each `[tokens]`, of two logits `[tokens, vocab]`."""
    p, q = log_softmax(reference), log_softmax(logits)
    return (np.exp(p) * (p - q)).sum(axis=-1), p.argmax(axis=-1) == q.argmax(axis=-1)


def mean_error(values: Iterable[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    array = np.array(list(values), dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else math.nan


def measure_bundle(
    bundle: Path, seeds: Iterable[int], reference: Recorder | None
) -> tuple[dict[str, Any], Recorder, Array]:
    """A bundle's figures; with a reference also its distance, and the mean KL of each answer."""
    recorder = Recorder(Varco.load(bundle))
    started = time.perf_counter()
    figures = evaluate(recorder.answer, seeds).report()
    figures["answers_s"] = time.perf_counter() - started
    manifest = read_manifest(bundle)
    figures["precision"] = manifest.decoder.precision
    figures["bundle_bytes"] = sum(facts.size for facts in manifest.files.values())
    figures["bytes_per_token"] = manifest.decoder.weight_bytes
    kl_by_answer = np.zeros(0)
    if reference is not None:
        kls, agreements = [], []
        for (image, prompt), token_ids in zip(reference.asked, reference.token_ids, strict=True):
            expected = reference.varco.score(image, prompt, token_ids)
            kl, agrees = divergence(expected, recorder.varco.score(image, prompt, token_ids))
            kls.append(kl)
            agreements.append(agrees)
        kl_by_answer = np.array([kl.mean() for kl in kls])
        figures["num_tokens"] = sum(len(kl) for kl in kls)
        figures["kl"] = float(np.concatenate(kls).mean())
        figures["kl_error"] = mean_error(kl_by_answer)[1]
        figures["top1_agreement"] = float(np.concatenate(agreements).mean())
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
)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Results as a Markdown table."""
    lines = ["| model | " + " | ".join(title for _, title, _ in COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, figures in results.items():
        cells = []
        for key, _, style in COLUMNS:
            value = figures.get(key)
            value = value / 1e6 if key == "bundle_bytes" and value is not None else value
            cells.append("" if value is None else style.format(value))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table on stdout, write the JSON document where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundles", type=Path, nargs="*", help="bundles of the same checkpoint; default: int8 and int4")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--start", type=int, default=0, help="first held-out picture")
    parser.add_argument("--transformers", action="store_true", help="also measure the checkpoint through transformers")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    options = parser.parse_args()
    seeds = held_out_seeds(options.pictures, options.start)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:

        def exported(name: str, **choices: Any) -> Path:
            export(options.checkpoint, Path(folder) / name, ExportOptions(**choices), Silent())
            return Path(folder) / name

        bundles = options.bundles or [
            exported("int8", decoder="int8"),
            exported("int4", decoder="int4"),
            exported("int4-int8-activations", decoder="int4", activations="int8"),
        ]
        results["fp32"], reference, _ = measure_bundle(exported("fp32"), seeds, None)
        kls: list[Array] = []
        for bundle in bundles:
            results[bundle.name], _, kl = measure_bundle(bundle, seeds, reference)
            kls.append(kl)
            gain, error = mean_error(kls[0] - kl)
            results[bundle.name] |= {"kl_gain": gain, "kl_gain_error": error}
        if options.transformers:
            texts: list[str] = []
            ask = transformers_answer(options.checkpoint, MAX_NEW_TOKENS)

            def answer(image: Image.Image, prompt: str) -> str:
                texts.append(ask(image, prompt))
                return texts[-1]

            results["transformers"] = evaluate(answer, seeds).report()
            same = [a == b for a, b in zip(texts, reference.texts, strict=True)]
            results["transformers"]["exact_answers"] = float(np.mean(same))
    print(table(results))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
