"""Acceptance probes: a bundle brings its own exam, and any machine can tell whether it passes.

    probes-1a2b3c4d.json     pictures, prompts, fixed answers, and what the exact model says about them
      -> replay              this bundle on this device, under teacher forcing
      -> one Check per component: error, limit, passed

The exporter computed the expected values without the bundle's graphs, from the checkpoint in fp32 (`varco_export`,
`reference_pass.py`), twice where weights are rounded: with the weights as the checkpoint has them ("exact"), and as
rounding should leave them, FP8 inputs cut off where a fixed scale ends ("built"). That separates two questions.

*Does this device compute what the bundle says?* is answered against "built", in units of what rounding does to this
very model (`file.Noise`). Where a CPU rounds inputs of linears to int8, the same graphs are run once more
without that (`StopsRounding`): rounding inputs turns differences of 1e-7 into whole steps, and would hide a norm's
wrong gain. What rounds is judged by itself besides, as far as its own noise lets it. What no question shows is compared
as facts (`facts.py`).

*Are its number formats good enough for the model?* is answered against "exact", by KL divergence and by how often
another token comes first: a grade, with advice (`grade.py`), and no verdict.

Errors. Features: the largest relative error, root mean square, of three groups of numbers (`digest`). Logits: root mean
square difference over the exact model's 32 likeliest tokens and 16 fixed ones, over the standard deviation of the exact
logits of all tokens; positions are pooled. KL: nats per token, with all tokens but the 32 likeliest as one outcome,
which can only make it smaller.

The limits come from measurement: see `limits.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from varco_runtime.backend import Backend, NormalizesPixels, PromptInputs, ShowsFeatures, StopsRounding
from varco_runtime.bundle.manifest import Manifest
from varco_runtime.bundle.opening import Bundle
from varco_runtime.dtypes import Array
from varco_runtime.errors import BundleError, ImageError, PromptError, one_line
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.media import Medium
from varco_runtime.picture.packing import media_plan, num_medium_tokens
from varco_runtime.picture.tiles import media_tiles, normalize
from varco_runtime.probes.digest import digest, digest_error, newline_digest
from varco_runtime.probes.facts import bundle_facts, differences
from varco_runtime.probes.file import DISTURBANCE, MAX_BYTES, NUM_TOP, Probe, ProbePicture, Probes, kept_ids, probes_of
from varco_runtime.probes.limits import (
    ARITHMETIC_FACTOR,
    COARSE_FACTOR,
    FEATURE_LIMITS,
    FORMER_MAX_NOISE,
    FORMER_NOISE_FACTOR,
    LOGIT_LIMITS,
    MAX_LOGIT_LIMIT,
    NOISE_FACTOR,
    ROUNDING,
    TIGHT_FEATURE_LIMIT,
    TIGHT_LOGIT_LIMIT,
)
from varco_runtime.probes.media import probe_message, shown_media
from varco_runtime.prompt.prompter import Prompter
from varco_runtime.prompt.tokenizer import Tokenizer

NUM_STEPS = 8
"""Answer positions taken with `decode_step`, the rest of the answer comes out of prefill."""
NUM_UNROUNDED_STEPS = 2
"""... where inputs are not rounded: 8-bit integers are then unpacked anew for every token."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table: `measure` says what `error` counts. A `limit` of None makes it a grade.

    `details`: what to say besides where it fails.
    """

    component: str
    measure: str
    error: float
    limit: float | None
    details: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return math.isfinite(self.error) and (self.limit is None or self.error <= self.limit)


@dataclass(frozen=True, slots=True)
class Scored:
    """A probe and logits `[num_answer, vocab]` at its answer."""

    probe: Probe
    logits: Array


@dataclass(frozen=True, slots=True)
class _Run:
    """What a backend made of all pictures and questions. `errors`: of features, by component, picture by picture."""

    errors: dict[str, list[float]]
    scored: list[Scored]
    num_steps: int

    def of(self, pictures: bool) -> list[Scored]:
        return [one for one in self.scored if (one.probe.picture is not None) is pictures]


def replay(bundle: Bundle, probes: Probes, backend: Backend, advance: Callable[[], None] = lambda: None) -> list[Check]:
    """Run all probes and compare.

    A backend that does not show its features is judged by what the decoder makes of them.

    Args:
        bundle: A bundle whose files have been checked.
        probes: Its probes, as far as they fit the backend.
        backend: The bundle on a device. One that rounds the inputs of linears, and can stop that, has then stopped.
        advance: Called after each picture and each probe.
    """
    prompter = _prompter(bundle)
    wrong_ids = sum(_wrong_ids(probe, bundle, probes, prompter) for probe in probes.probes)
    checks = [Check("prompts", "wrong ids", wrong_ids, 0)]
    if probes.facts:
        found = differences(probes.facts, bundle_facts(bundle))
        checks.append(Check("settings", "other than the checkpoint's", len(found), 0, found))
    run = _run(bundle, probes, backend, NUM_STEPS, advance)
    unrounded = None
    if isinstance(backend, StopsRounding) and backend.stop_rounding():
        unrounded = _run(bundle, probes, backend, NUM_UNROUNDED_STEPS, advance)
    return [*checks, *_numbers(bundle, probes, run, unrounded), *_grades(run)]


def _run(bundle: Bundle, probes: Probes, backend: Backend, num_steps: int, advance: Callable[[], None]) -> _Run:
    run = _Run({}, [], num_steps)
    # Picture by picture: a backend may hold the tokens of one alone.
    for index in (None, *range(len(probes.pictures))):
        tokens, num_tokens = None, 0
        if index is not None:
            tokens, num_tokens = _encode_picture(probes.pictures[index], bundle, backend, run.errors)
            advance()
        for probe in probes.probes:
            if probe.picture == index:
                run.scored.append(Scored(probe, _answer(probe, tokens, num_tokens, bundle, backend, num_steps)))
                advance()
    return run


def _numbers(bundle: Bundle, probes: Probes, run: _Run, unrounded: _Run | None) -> Iterator[Check]:
    """What the device computes; where there is an `unrounded` run, by that one, and what rounds then by itself."""
    limits = Limits(bundle, probes, rounds=unrounded is None)
    judged = unrounded or run
    text, pictures = judged.of(pictures=False), judged.of(pictures=True)
    for part, found in judged.errors.items():
        yield Check(part, "relative error", float(np.max(found)), limits.features)
    if text:
        yield Check("decoder, text", _LOGITS, logit_error(text), limits.text)
    if pictures:
        yield Check("decoder, pictures", _LOGITS, logit_error(pictures), limits.pictures)
    steps = logit_error(judged.scored, last=judged.num_steps)
    yield Check("decoder, single steps", _LOGITS, steps, max(limits.text, limits.pictures))
    if unrounded is None or not probes.is_tight:
        return
    if probes.vision == "int8" and run.errors:
        worst = float(np.max([error for found in run.errors.values() for error in found]))
        yield Check("vision, inputs rounded", "relative error", worst, FEATURE_LIMITS["int8"])
    if probes.noise.text and text:
        limit = min(NOISE_FACTOR * probes.noise.text, MAX_LOGIT_LIMIT)
        yield Check("decoder, inputs rounded", _LOGITS, logit_error(run.of(pictures=False)), limit)


_LOGITS = "relative logit error"


class Limits:
    """What the errors of a bundle's run may be. `rounds`: whether it rounds inputs, if its networks ever do."""

    def __init__(self, bundle: Bundle, probes: Probes, rounds: bool) -> None:
        manifest, noise = bundle.manifest, probes.noise
        on_cpu = manifest.device == "cpu"
        exact_tower = probes.vision == "fp32" or not rounds
        tight_tower = probes.is_tight and on_cpu and manifest.vision.compute == "fp32" and exact_tower
        self.features = TIGHT_FEATURE_LIMIT if tight_tower else FEATURE_LIMITS[probes.vision]
        compute = manifest.kv_format  # attention computes in it
        if not probes.is_tight:
            coarse = FORMER_NOISE_FACTOR * min(noise.text, FORMER_MAX_NOISE) if rounds else 0.0
            self.text = max(LOGIT_LIMITS[compute], coarse)
        else:
            self.text = _logit_limit(compute, on_cpu, noise.text if rounds else 0.0, noise.text_arithmetic)
        self.pictures = self.text
        if probes.is_tight:
            rounding = noise.pictures if rounds else 0.0
            self.pictures = _logit_limit(compute, on_cpu, rounding, noise.pictures_arithmetic)
        if not tight_tower:
            self.pictures = max(self.pictures, self.features)  # the decoder passes on what errors it is given


def _logit_limit(compute: str, on_cpu: bool, rounding: float, arithmetic: float | None) -> float:
    """From what rounding and a disturbance of a part in a million do to a model, 0 for None."""
    arithmetic = arithmetic or 0.0
    if compute == "fp32" and on_cpu:
        limit = max(TIGHT_LOGIT_LIMIT, ARITHMETIC_FACTOR * arithmetic)
    else:  # a GPU may round what it multiplies in fp32 to TF32, as coarsely as fp16
        steps = ROUNDING.get(compute, ROUNDING["fp16"]) / DISTURBANCE
        limit = max(LOGIT_LIMITS[compute], COARSE_FACTOR * steps * arithmetic)
    return min(max(limit, NOISE_FACTOR * rounding), MAX_LOGIT_LIMIT)


def _grades(run: _Run) -> list[Check]:
    """How far the answers are from those of full precision."""
    first = [np.argmax(one.logits, axis=1) != one.probe.top_ids[:, 0] for one in run.scored]
    share = float(np.concatenate(first).mean())
    return [
        Check("answers", "KL to full precision, nats", divergence(run.scored), None),
        Check("answers", "another token first, share", share, None),
    ]


def _media(probe: ProbePicture, bundle: Bundle) -> tuple[Medium, ...]:
    try:
        return shown_media(load_picture(probe.png), probe.shows, probe.count, bundle.manifest.image)
    except ImageError as error:
        raise BundleError(
            f"The picture {probe.name!r} of the bundle's probes cannot be used: {error} Export the bundle again."
        ) from None


def _encode_picture(
    probe: ProbePicture, bundle: Bundle, backend: Backend, errors: dict[str, list[float]]
) -> tuple[Any, int]:
    """The picture's tokens in the backend's memory and their number; adds to `errors` by component."""
    settings = bundle.manifest.image
    media = _media(probe, bundle)
    plan = media_plan(media, settings)
    tiles = media_tiles(media, settings)
    pixel_values = normalize(tiles, settings)
    if not isinstance(backend, ShowsFeatures):
        return backend.pack(backend.encode(pixel_values), plan), plan.num_tokens
    seen = backend.features(pixel_values, plan)
    for component, got, expected in (
        ("vision", digest(_matrix(seen.patch_features)), probe.vision),
        ("projector", digest(_matrix(seen.image_features)), probe.projector),
        ("image tokens", digest(_matrix(seen.image_tokens)), probe.image_tokens),
        ("newlines", newline_digest(seen.image_tokens, plan), probe.newlines),
    ):
        errors.setdefault(component, []).append(digest_error(got, expected))
    if isinstance(backend, NormalizesPixels):  # the answers' way to their picture
        return backend.pack(backend.encode_pixels(tiles), plan), plan.num_tokens
    return seen.packed, plan.num_tokens


def _matrix(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])


def _answer(probe: Probe, tokens: Any, num_tokens: int, bundle: Bundle, backend: Backend, max_steps: int) -> Array:
    """The logits `[num_answer, vocab]` that choose each token of the answer."""
    ids = probe.ids[:-1].astype(np.int64)  # nothing follows the last token
    is_image = np.isin(ids, placeholder_ids(bundle.manifest))
    if np.count_nonzero(is_image) != num_tokens:  # counted as wrong ids; there is nothing to compare
        return np.full((probe.num_answer, bundle.manifest.model.vocab_size), np.nan, np.float32)
    num_steps = min(max_steps, probe.num_answer - 1)
    split = len(ids) - num_steps
    rows = np.where(is_image, np.cumsum(is_image) - 1, -1)
    image_token_id = bundle.manifest.prompt.image_token_id
    prompt = PromptInputs(ids[:split], image_token_id, tokens, rows[:split])
    logits = [*backend.prefill(prompt, 0, probe.num_answer - num_steps)]
    logits += [backend.decode_step(int(ids[position]), position).copy() for position in range(split, len(ids))]
    return np.stack(logits)


def placeholder_ids(manifest: Manifest) -> list[int]:
    """Return the ids that stand for image tokens in prompts."""
    video_token_id = manifest.media_facts.video_token_id
    return [manifest.prompt.image_token_id, *([] if video_token_id is None else [video_token_id])]


def _wrong_ids(probe: Probe, bundle: Bundle, probes: Probes, prompter: Prompter) -> int:
    """How many ids of the prompt this runtime would write otherwise."""
    media = () if probe.picture is None else _media(probes.pictures[probe.picture], bundle)
    counts = [num_medium_tokens(medium, bundle.manifest.image) for medium in media]
    expected = probe.ids[: -probe.num_answer].tolist()
    try:
        got = prompter.encode_media([probe_message(probe.prompt, media)], counts).ids
    except PromptError:
        return len(expected)
    return abs(len(got) - len(expected)) + sum(1 for a, b in zip(got, expected, strict=False) if a != b)


def _prompter(bundle: Bundle) -> Prompter:
    manifest = bundle.manifest
    tokenizer = Tokenizer.from_json(bundle.text(manifest.tokenizer))
    return Prompter(bundle.text(manifest.chat_template), manifest.prompt, tokenizer, manifest.media_facts)


def logit_error(scored: list[Scored], last: int | None = None) -> float:
    """Root mean square difference from `built` over the exact logits' standard deviation, over the last positions."""
    difference = spread = 0.0
    for one in scored:
        probe, logits = one.probe, one.logits
        rows = slice(None if last is None else -min(last, probe.num_answer - 1), None)
        got = np.take_along_axis(logits, kept_ids(probe.top_ids, logits.shape[1]), axis=1)
        difference += float(np.square(np.float64(got) - probe.built)[rows].mean(axis=1).sum())
        spread += float(np.square(np.float64(probe.spread[rows])).sum())
    return float(np.sqrt(difference / spread)) if spread else float("inf")


def divergence(scored: list[Scored]) -> float:
    """Mean over positions of KL(exact || these logits), all tokens but the exact model's likeliest as one outcome."""
    values = []
    for one in scored:
        probe, logits = one.probe, one.logits
        got = np.float64(logits)
        peak = got.max(axis=1, keepdims=True)
        log_q = got - peak - np.log(np.exp(got - peak).sum(axis=1, keepdims=True))  # [A, vocab]
        log_q = np.take_along_axis(log_q, probe.top_ids.astype(np.int64), axis=1)  # [A, 32]
        log_p = np.float64(probe.exact[:, :NUM_TOP]) - probe.log_sum_exp[:, None]
        p = np.exp(log_p)
        rest_p, rest_q = (np.clip(1 - np.exp(log).sum(axis=1), 1e-9, 1) for log in (log_p, log_q))
        values.append((p * (log_p - log_q)).sum(axis=1) + rest_p * np.log(rest_p / rest_q))
    mean = float(np.concatenate(values).mean())
    return max(mean, 0.0) if mean == mean else mean


# --- the file ---------------------------------------------------------------------------------------------------------


def probe_tasks(content: str) -> list[str]:
    """The task of each probe, `chat`, `ground` or `ocr`, of a file that has been checked. Raises `BundleError`."""
    try:
        return [str(probe["task"]) for probe in json.loads(content)["probes"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = one_line(error, 120)
        raise BundleError(f"The bundle's probes are no file of probes ({reason}). Export it again.") from None


def read_probes(bundle: Bundle) -> Probes:
    """The probes of a bundle whose files have been checked. Raises `BundleError` if it has none, or for nonsense."""
    name = bundle.manifest.probes
    if name is None:
        raise BundleError(
            f"{bundle.folder} holds no acceptance probes. Add them with: varco probe CHECKPOINT {bundle.folder}"
        )
    size = bundle.manifest.files[name].size
    if size > MAX_BYTES:
        raise BundleError(f"{name} has {size} bytes, expected at most {MAX_BYTES}. Export the bundle again.")
    try:
        return probes_of(json.loads(bundle.text(name)), bundle.manifest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = one_line(error, 120)
        raise BundleError(f"{name} is not a file of probes ({reason}). Export the bundle again.") from None
