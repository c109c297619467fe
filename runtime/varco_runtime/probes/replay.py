"""Acceptance probes: a bundle brings its own exam, and any machine can tell whether it passes.

    probes-1a2b3c4d.json     pictures, prompts, fixed answers, and what the exact model says about them
      -> replay              this bundle on this device, under teacher forcing
      -> one Check per component: error, limit, passed

The exporter computed the expected values without the bundle's graphs, from the checkpoint in fp32 (`varco_export`,
`reference_pass.py`), twice where a decoder is rounded by the exporter or FP8 inputs have fixed scales: with the weights
as the checkpoint has them ("exact"), and as rounding should leave them and the inputs cut off where their scale ends
("built"). That separates two questions. *Does this device compute what the bundle says?* is answered against "built":
rounding cancels, so that one layer's swapped scales stand out even in int4. *Is the bundle still the model?* is
answered against "exact", by KL divergence, where a coarser format may differ more.

Errors. Features: the largest relative error, root mean square, of three groups of numbers (`digest`). Logits: root mean
square difference over the exact model's 32 likeliest tokens and 16 fixed ones, over the standard deviation of the exact
logits of all tokens; positions are pooled. KL: nats per token, with all tokens but the 32 likeliest as one outcome,
which can only make it smaller.

The limits come from measurement: see `probe_limits.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from varco_runtime.backend import Backend, NormalizesPixels, PromptInputs, ShowsFeatures
from varco_runtime.bundle.opening import Bundle
from varco_runtime.dtypes import Array
from varco_runtime.errors import BundleError, ImageError, PromptError, one_line
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.packing import normalise, packing_plan, tile
from varco_runtime.probes.digest import digest, digest_error, newline_digest
from varco_runtime.probes.file import MAX_BYTES, NUM_TOP, Probe, ProbePicture, Probes, kept_ids, probes_of
from varco_runtime.probes.limits import FEATURE_LIMITS, KL_LIMITS, LOGIT_LIMITS, MAX_NOISE, NOISE_FACTOR
from varco_runtime.prompt.prompter import Message, Prompter
from varco_runtime.prompt.tokenizer import Tokenizer

NUM_STEPS = 8
"""Answer positions taken with `decode_step`, the rest of the answer comes out of prefill."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table: `measure` says what `error` counts."""

    component: str
    measure: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit  # NaN is no pass


def replay(bundle: Bundle, probes: Probes, backend: Backend, advance: Callable[[], None] = lambda: None) -> list[Check]:
    """Run all probes and compare. `advance` is called after each picture and each probe.

    A backend that does not show its features is judged by what the decoder makes of them.
    """
    prompter = _prompter(bundle)
    wrong_ids = 0
    errors: dict[str, list[float]] = {}
    scored: list[_Scored] = []
    # Picture by picture: a backend may hold the tokens of one alone.
    for index in (None, *range(len(probes.pictures))):
        tokens, num_tokens = None, 0
        if index is not None:
            tokens, num_tokens = _see(probes.pictures[index], bundle, backend, errors)
            advance()
        for probe in probes.probes:
            if probe.picture == index:
                wrong_ids += _wrong_ids(probe, num_tokens, prompter)
                scored.append(_Scored(probe, _answer(probe, tokens, num_tokens, bundle, backend)))
                advance()
    return _checks(bundle, probes, wrong_ids, errors, scored)


@dataclass(frozen=True, slots=True)
class _Scored:
    """A probe and the device's logits `[num_answer, vocab]` at its answer."""

    probe: Probe
    logits: Array


def _checks(
    bundle: Bundle, probes: Probes, wrong_ids: int, errors: dict[str, list[float]], scored: list[_Scored]
) -> list[Check]:
    feature_limit = FEATURE_LIMITS[probes.vision]
    noise = min(probes.noise, MAX_NOISE)
    text_limit = max(LOGIT_LIMITS[bundle.manifest.decoder.compute], NOISE_FACTOR * noise)
    limit = max(text_limit, feature_limit)  # the decoder passes on what errors it is given
    kl_limit = max(KL_LIMITS[probes.decoder], KL_LIMITS[probes.vision])
    text = [one for one in scored if one.probe.picture is None]
    about = [one for one in scored if one.probe.picture is not None]

    checks = [Check("prompts", "wrong ids", wrong_ids, 0)]
    checks += [Check(part, "relative error", float(np.max(found)), feature_limit) for part, found in errors.items()]
    if text:
        checks.append(Check("decoder, text", "relative logit error", _logit_error(text), text_limit))
    if about:
        checks.append(Check("decoder, pictures", "relative logit error", _logit_error(about), limit))
    steps = _logit_error(scored, last=NUM_STEPS)
    checks.append(Check("decoder, single steps", "relative logit error", steps, limit))
    checks.append(Check("answers", "KL to full precision, nats", _kl(scored), kl_limit))
    return checks


def _see(probe: ProbePicture, bundle: Bundle, backend: Backend, errors: dict[str, list[float]]) -> tuple[Any, int]:
    """The picture's tokens in the backend's memory and their number; adds to `errors` by component."""
    settings = bundle.manifest.image
    try:
        picture = load_picture(probe.png)
    except ImageError as error:
        raise BundleError(
            f"The picture {probe.name!r} of the bundle's probes cannot be used: {error} Export the bundle again."
        ) from None
    plan = packing_plan(picture.size_hw, settings)
    tiles = tile(picture, settings)
    pixel_values = normalise(tiles, settings)
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


def _answer(probe: Probe, tokens: Any, num_tokens: int, bundle: Bundle, backend: Backend) -> Array:
    """The logits `[num_answer, vocab]` that choose each token of the answer."""
    image_token_id = bundle.manifest.prompt.image_token_id
    ids = probe.ids[:-1].astype(np.int64)  # nothing follows the last token
    if np.count_nonzero(ids == image_token_id) != num_tokens:  # counted as wrong ids; there is nothing to compare
        return np.full((probe.num_answer, bundle.manifest.model.vocab_size), np.nan, np.float32)
    num_steps = min(NUM_STEPS, probe.num_answer - 1)
    split = len(ids) - num_steps
    prompt = PromptInputs(ids[:split], image_token_id, tokens)
    rows = [*backend.prefill(prompt, 0, probe.num_answer - num_steps)]
    rows += [backend.decode_step(int(ids[position]), position).copy() for position in range(split, len(ids))]
    return np.stack(rows)


def _wrong_ids(probe: Probe, num_image_tokens: int, prompter: Prompter) -> int:
    """How many ids of the prompt this runtime would write otherwise."""
    expected = probe.ids[: -probe.num_answer].tolist()
    try:
        got = prompter.encode([Message("user", probe.prompt, image=probe.picture is not None)], num_image_tokens)
    except PromptError:
        return len(expected)
    return abs(len(got) - len(expected)) + sum(1 for a, b in zip(got, expected, strict=False) if a != b)


def _prompter(bundle: Bundle) -> Prompter:
    manifest = bundle.manifest
    tokenizer = Tokenizer.from_json(bundle.text(manifest.tokenizer))
    return Prompter(bundle.text(manifest.chat_template), manifest.prompt, tokenizer)


def _logit_error(scored: list[_Scored], last: int | None = None) -> float:
    """Root mean square difference from `built` over the exact logits' standard deviation, over the last positions."""
    difference = spread = 0.0
    for one in scored:
        probe, logits = one.probe, one.logits
        rows = slice(None if last is None else -min(last, probe.num_answer - 1), None)
        got = np.take_along_axis(logits, kept_ids(probe.top_ids, logits.shape[1]), axis=1)
        difference += float(np.square(np.float64(got) - probe.built)[rows].mean(axis=1).sum())
        spread += float(np.square(np.float64(probe.spread[rows])).sum())
    return float(np.sqrt(difference / spread)) if spread else float("inf")


def _kl(scored: list[_Scored]) -> float:
    """Mean over positions of KL(exact || this device), all tokens but the exact model's likeliest as one outcome."""
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
