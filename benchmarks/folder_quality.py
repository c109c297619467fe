"""Bundles compared with the full-precision one on a folder of somebody's own pictures.

One model is loaded at a time: the reference answers every question and its logits, 4 bytes for each token of an answer
and each of the vocabulary, wait in a scratch folder for the others (a hundred tokens of the 14B: 61 MB).

What is said is compared with a truth: the answers that the folder gives, where it gives any, and then only those
questions count; otherwise the reference's own answers. Of both, the markup's texts and boxes are compared:

- words: the texts of `<char>` regions; of an answer to `<ocr>` without any, what white space separates. A word is right
  if the model said it too; each said word counts once, the one whose box fits best.
- characters: edits between all words said and all true ones, joined by line ends, per true character.
- boxes: intersection over union, averaged over the boxes of regions that the model said with the same kind and text.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.divergence import Array, ByAnswer, distance, divergence
from training.evaluate import edits, iou
from varco_export.quantize.calibration import Sample
from varco_runtime import Varco
from varco_runtime.bundle.opening import read_manifest
from varco_runtime.errors import InputError, VarcoError
from varco_runtime.markup.parser import parse
from varco_runtime.markup.questions import OCR_PROMPT
from varco_runtime.markup.regions import Box, Region

GIVEN, REFERENCE = "the folder's answers", "the full-precision answers"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A bundle to measure, and how it is loaded: the options of `Varco.load`."""

    path: Path
    options: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Varco:
        """Return the loaded model."""
        return Varco.load(self.path, **self.options)


@dataclass(frozen=True, slots=True)
class Said:
    """One answer."""

    text: str
    token_ids: tuple[int, ...]


def measure_folder(
    reference: Path, bundles: dict[str, Candidate], samples: Sequence[Sample], scratch: Path, max_new_tokens: int
) -> tuple[dict[str, dict[str, Any]], dict[str, ByAnswer]]:
    """Figures of the reference (named `fp32`) and of each bundle, and the KL of each answer by bundle.

    Raises `InputError` that names the sample whose picture or prompt cannot be asked.
    """
    expected, results = [], {}
    varco, started = Varco.load(reference), time.perf_counter()
    for index, sample in enumerate(samples):
        expected.append(_ask(varco, sample, max_new_tokens))
        np.save(scratch / f"{index}.npy", _score(varco, sample, expected[-1]))
    results["fp32"] = _costs(reference, started)
    is_given = any(sample.answer is not None for sample in samples)
    judged = [index for index, sample in enumerate(samples) if sample.answer is not None or not is_given]
    truths = {index: samples[index].answer or expected[index].text for index in judged}

    def accuracy(answers: Sequence[Said]) -> dict[str, Any]:
        pairs = [(samples[index].prompt, answers[index].text, truth) for index, truth in truths.items()]
        return {"judged_by": GIVEN if is_given else REFERENCE, "num_judged": len(pairs)} | compare(pairs)

    if is_given:
        results["fp32"] |= accuracy(expected)
    kl_by_answer = {}
    for name, bundle in bundles.items():
        del varco  # before the next is loaded
        gc.collect()
        varco, started = bundle.load(), time.perf_counter()
        said, distances = [], []
        for index, sample in enumerate(samples):
            said.append(_ask(varco, sample, max_new_tokens))
            found = _score(varco, sample, expected[index])
            distances.append(divergence(np.load(scratch / f"{index}.npy"), found))
        figures, kl_by_answer[name] = distance(distances)
        figures["exact_answers"] = float(np.mean([a.text == b.text for a, b in zip(said, expected, strict=True)]))
        results[name] = _costs(bundle.path, started) | accuracy(said) | figures
    return results, kl_by_answer


def _ask(varco: Varco, sample: Sample, max_new_tokens: int) -> Said:
    try:
        answer = varco.ask(sample.image, sample.prompt, max_new_tokens=max_new_tokens)
    except VarcoError as error:
        raise InputError(f"{sample.where}: {error}") from None
    return Said(answer.text, answer.token_ids)


def _score(varco: Varco, sample: Sample, said: Said) -> Array:
    """Logits `[tokens, vocab]` at the reference's answer."""
    return varco.score(sample.image, sample.prompt, said.token_ids)


def _costs(bundle: Path, started: float) -> dict[str, Any]:
    manifest = read_manifest(bundle)
    return {
        "precision": manifest.decoder.precision,
        "bundle_bytes": sum(facts.size for facts in manifest.files.values()),
        "bytes_per_token": manifest.decoder.weight_bytes,
        "answers_s": time.perf_counter() - started,
    }


# --- what was said, and what is true ----------------------------------------------------------------------------------


def compare(answers: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """Figures of `(prompt, said, true)` texts. Those that nothing was asked for are left out."""
    right = num_words = num_edits = num_characters = 0
    overlaps: list[float] = []
    for prompt, said, true in answers:
        said_words, true_words = _words(prompt, said), _words(prompt, true)
        right += len(true_words) - len(_missing(true_words, said_words))
        num_words += len(true_words)
        truth = "\n".join(true_words)
        num_edits += edits("\n".join(said_words), truth) if truth else 0
        num_characters += len(truth)
        overlaps += _overlaps(parse(said).regions, parse(true).regions)
    figures: dict[str, Any] = {"num_words": num_words, "num_boxes": len(overlaps)}
    if num_words:
        accuracy = right / num_words
        figures["word_accuracy"] = accuracy
        figures["word_accuracy_error"] = math.sqrt(accuracy * (1 - accuracy) / num_words)
        figures["character_error_rate"] = num_edits / num_characters
    if overlaps:
        figures["mean_iou"] = float(np.mean(overlaps))
    return figures


def _words(prompt: str, text: str) -> list[str]:
    parsed = parse(text)
    words = [region.text for region in parsed.regions if region.kind == "text" and region.text]
    return words or (parsed.plain_text.split() if prompt == OCR_PROMPT else [])


def _missing(true: Sequence[str], said: Sequence[str]) -> list[str]:
    """The true words that were not said; each said word counts once."""
    left, missing = list(said), []
    for word in true:
        if word in left:
            left.remove(word)
        else:
            missing.append(word)
    return missing


def _overlaps(said: Sequence[Region], true: Sequence[Region]) -> list[float]:
    """Of every true box whose region was said: how well the closest box of the best region fits."""
    left, overlaps = list(said), []
    for region in true:
        fits = {
            index: [max((iou(_corners(a), _corners(b)) for b in one.boxes), default=0.0) for a in region.boxes]
            for index, one in enumerate(left)
            if (one.kind, one.text) == (region.kind, region.text)
        }
        if region.boxes and fits:
            best = max(fits, key=lambda index: sum(fits[index]))
            overlaps += fits[best]
            del left[best]
    return overlaps


def _corners(box: Box) -> tuple[float, float, float, float]:
    return box.x1, box.y1, box.x2, box.y2
