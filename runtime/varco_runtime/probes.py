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

The limits (`FEATURE_LIMITS`, `LOGIT_LIMITS`, `KL_LIMITS`) come from measurement; how is told beside them.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from varco_runtime.backend import Backend, PromptInputs, ShowsFeatures
from varco_runtime.bundle import Bundle
from varco_runtime.errors import BackendError, BundleError, PromptError
from varco_runtime.image import PackingPlan, normalise, packing_plan, tile
from varco_runtime.picture import load_picture
from varco_runtime.prompt import Message, Prompter
from varco_runtime.tokenizer import Tokenizer

Array = np.ndarray[Any, Any]

VERSION = 1
MAX_BYTES = 4 << 20
MAX_PICTURES = 8
MAX_PROBES = 16
MAX_TOKENS = 1 << 15
NUM_TOP = 32
NUM_SAMPLED = 16
NUM_STEPS = 8
"""Answer positions taken with `decode_step`, the rest of the answer comes out of prefill."""
NUM_GROUPS, GROUP_SIZE = 3, 128
_SEED = 20241105


# Measured by `benchmarks/probe_limits.py` with onnxruntime 1.31 on x86: the trained varco-tiny, and six random
# checkpoints of 2 to 12 layers, three of them gentle (as trained weights are), three wild (each layer amplifies
# errors). The largest error of a good bundle; the least error of a broken one where it is broken; the limit, which
# leaves room for other devices and deeper models (FP32: the TF32 of a GPU; int8 vision: 26 layers). bf16 has not been
# measured: it rounds 8 times as coarsely as fp16.
#
#                                 good: trained   gentle    wild      broken     limit
#     features, fp32                    2e-6      1e-6      1e-6       0.4       5e-3
#     features, fp16                    6e-4      1.3e-3    1.3e-3     0.4       2e-2
#     features, int8                    4e-2      3e-2      3e-2       0.4       2e-1
#     logits, fp32 arithmetic           3e-6      5e-7      4e-6       1.8e-2    5e-3
#     logits, fp16 arithmetic           7e-4      1.2e-3    8.7e-3     0.2       1.5e-2
#     logits, rounded inputs, in noise  1.1       1.2       1.4        3.0       2
#     KL, fp32                          5e-8      3e-13     6e-11                1e-5
#     KL, fp16                          5e-7      1.3e-6    2.5e-4               1e-3
#     KL, int8                          1.7e-4    1.2e-4    8e-2                 3e-2
#     KL, int4                          2.2e-2    1.8e-2    3.2                  5e-1
#
# Rounding the inputs of linears (int8, FP8) is noise whose size depends on the model, and each kernel rounds in its own
# way: so the limit is a multiple of what the exporter found such rounding to do to this model (`Probes.noise`). KL says
# whether the format suits the model; wild weights are no reason to let an int4 of KL 3 pass.
FEATURE_LIMITS: dict[str, float] = {"fp32": 5e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 2e-1}
LOGIT_LIMITS: dict[str, float] = {"fp32": 5e-3, "fp16": 1.5e-2, "bf16": 8e-2}
NOISE_FACTOR = 2.0
MAX_NOISE = 0.25
"""Of a model that rounding disturbs more than this, no logit could be trusted: its limit grows no further."""
KL_LIMITS: dict[str, float] = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 5e-2, "int8": 3e-2, "fp8": 5e-1, "int4": 5e-1}


@dataclass(frozen=True, slots=True)
class ProbePicture:
    """A drawn picture and digests `[3, 128]` of what the networks should make of it."""

    name: str
    png: bytes
    vision: Array
    projector: Array
    image_tokens: Array
    newlines: Array


@dataclass(frozen=True, slots=True)
class Probe:
    """A question, its fixed answer, and the logits that the model should have where each token of it is chosen.

    `ids` int32 `[n]`: the prompt, image tokens included, and the answer; the answer is the last `num_answer`.
    `top_ids` int32 `[num_answer, 32]`: the exact model's likeliest tokens, likeliest first. `exact` and `built` fp32
    `[num_answer, 48]`: logits of those and of `sampled_ids`. `log_sum_exp` and `spread` fp32 `[num_answer]`: of the
    exact logits of all tokens, the latter their standard deviation.
    """

    task: str
    picture: int | None
    prompt: str
    answer: str
    ids: Array
    num_answer: int
    top_ids: Array
    exact: Array
    built: Array
    log_sum_exp: Array
    spread: Array


@dataclass(frozen=True, slots=True)
class Probes:
    """What a probes file holds. `vision` and `decoder`: the coarsest number format of each network's weights. `noise`:
    the logit error that rounding the inputs of linears to int8 or FP8 causes in this model, 0 where none are."""

    vision: str
    decoder: str
    noise: float
    pictures: tuple[ProbePicture, ...]
    probes: tuple[Probe, ...]

    @property
    def max_tokens(self) -> int:
        """Positions that the longest probe needs."""
        return max(len(probe.ids) for probe in self.probes)

    def within(self, max_context: int) -> Probes:
        """Without the probes that need more positions. All pictures stay: their features can be compared all the same.

        Raises `BackendError` where no probe is left.
        """
        fitting = tuple(probe for probe in self.probes if len(probe.ids) <= max_context)
        if not fitting:
            least = min(len(probe.ids) for probe in self.probes)
            raise BackendError(
                f"The probes need {least} positions and more, {max_context} can be held here. Build engines for them "
                f"with: varco engines BUNDLE --max-context {self.max_tokens}"
            )
        return replace(self, probes=fitting)


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


# --- digests ----------------------------------------------------------------------------------------------------------


def digest(features: Array) -> Array:
    """Three groups of 128 numbers about a matrix `[rows, columns]`, fp32 `[3, 128]`, for comparison by `digest_error`.

    The mean row along random signs; the rest (each row less the mean row) along random signs of rows and columns; and
    single entries of the rest. Projections see an error anywhere; the mean is held apart because the few channels of
    large constant value that vision towers have would hide everything else.
    """
    features = np.asarray(features, np.float32)
    rows, columns = features.shape
    # RandomState's stream is frozen for all versions of numpy.
    random = np.random.RandomState(_SEED)
    across = random.randint(0, 2, (columns, GROUP_SIZE)).astype(np.float32) * 2 - 1
    along = random.randint(0, 2, (GROUP_SIZE, rows)).astype(np.float32) * 2 - 1
    picked = random.randint(0, rows, GROUP_SIZE), random.randint(0, columns, GROUP_SIZE)
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    rest = features - mean
    projections = np.einsum("kc,ck->k", along @ rest, across) / np.sqrt(rows * columns)
    return np.stack([mean @ across / np.sqrt(columns), projections, rest[picked]]).astype(np.float32)


def digest_error(got: Array, expected: Array) -> float:
    """The largest relative error, root mean square, of the groups."""
    errors = [_relative(one, other) for one, other in zip(got, expected, strict=True)]
    return float(np.max(errors))  # NaN stays; Python's max may lose it


def _relative(got: Array, expected: Array) -> float:
    difference = float(np.linalg.norm(np.float64(got) - expected))
    norm = float(np.linalg.norm(np.float64(expected)))
    return 0.0 if difference == 0 else difference / norm if norm else float("inf")


def newline_rows(tokens: Array, plan: PackingPlan) -> Array:
    """The image tokens `[n, D]` at the ends of the grid's rows."""
    rows: Array = np.asarray(tokens, np.float32)[plan.indices[:, 0] == plan.newline_row]
    return rows


def newline_digest(tokens: Array, plan: PackingPlan) -> Array:
    """The digest of the newlines' mean: they are one vector, so that there is no rest to speak of."""
    mean = newline_rows(tokens, plan).mean(axis=0, dtype=np.float64, keepdims=True)
    return digest(mean)


def sampled_ids(vocab_size: int) -> Array:
    """The fixed tokens whose logits are kept at every position, int32 `[16]`."""
    return np.random.RandomState(_SEED).randint(0, vocab_size, NUM_SAMPLED).astype(np.int32)


def kept_ids(top_ids: Array, vocab_size: int) -> Array:
    """The tokens whose logits are kept at each position, int64 `[n, 48]`: the likeliest and the fixed ones."""
    sampled = np.broadcast_to(sampled_ids(vocab_size), (len(top_ids), NUM_SAMPLED))
    return np.concatenate([top_ids, sampled], axis=1).astype(np.int64)


# --- replay -----------------------------------------------------------------------------------------------------------


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
    picture = load_picture(Image.open(io.BytesIO(probe.png)))
    plan = packing_plan(picture.size_hw, settings)
    pixel_values = normalise(tile(picture, settings), settings)
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
        reason = " ".join(str(error).split())[:120]
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
        return _probes_of(json.loads(bundle.text(name)), bundle)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BundleError(f"{name} is not a file of probes ({reason}). Export the bundle again.") from None


def to_json(probes: Probes) -> bytes:
    """The file's content: JSON, with pictures and arrays in base64."""
    document = {
        "version": VERSION,
        "vision": probes.vision,
        "decoder": probes.decoder,
        "noise": probes.noise,
        "pictures": [
            {
                "name": picture.name,
                "png": base64.b64encode(picture.png).decode(),
                **{name: _packed(getattr(picture, name)) for name in _DIGESTS},
            }
            for picture in probes.pictures
        ],
        "probes": [
            {
                **{name: getattr(probe, name) for name in ("task", "picture", "prompt", "answer", "num_answer")},
                **{name: _packed(getattr(probe, name)) for name in _NUMBERS},
                "built": None if probe.built is probe.exact else _packed(probe.built),
            }
            for probe in probes.probes
        ],
    }
    return (json.dumps(document, indent=1, ensure_ascii=True) + "\n").encode()


_NUMBERS = ("ids", "top_ids", "exact", "log_sum_exp", "spread")
_DIGESTS = ("vision", "projector", "image_tokens", "newlines")


def _probes_of(document: dict[str, Any], bundle: Bundle) -> Probes:
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']!r}, expected {VERSION}")
    pictures = tuple(_picture_of(entry) for entry in _listed(document["pictures"], MAX_PICTURES))
    vocab_size = bundle.manifest.model.vocab_size
    probes = tuple(_probe_of(entry, len(pictures), vocab_size) for entry in _listed(document["probes"], MAX_PROBES))
    found = Probes(document["vision"], document["decoder"], float(document["noise"]), pictures, probes)
    if found.vision not in FEATURE_LIMITS or not {found.vision, found.decoder} <= KL_LIMITS.keys():
        raise ValueError(f"formats {found.vision!r} and {found.decoder!r}, expected known ones")
    if not probes or not 0 <= found.noise < float("inf"):
        raise ValueError(f"{len(probes)} probes and noise {found.noise}")
    if found.max_tokens > bundle.manifest.max_context:
        raise ValueError(f"{found.max_tokens} tokens, expected at most {bundle.manifest.max_context}")
    return found


def _picture_of(entry: dict[str, Any]) -> ProbePicture:
    digests = {name: _unpacked(entry[name], np.float32, (NUM_GROUPS, GROUP_SIZE)) for name in _DIGESTS}
    return ProbePicture(str(entry["name"]), base64.b64decode(entry["png"], validate=True), **digests)


def _probe_of(entry: dict[str, Any], num_pictures: int, vocab_size: int) -> Probe:
    ids, picture, count = _unpacked(entry["ids"], np.int32, None), entry["picture"], entry["num_answer"]
    if not (picture is None or (type(picture) is int and 0 <= picture < num_pictures)):
        raise ValueError(f"picture {picture!r}")
    if type(count) is not int or not 2 <= count < len(ids) <= MAX_TOKENS:
        raise ValueError(f"num_answer {count!r} of {len(ids)} ids")
    top_ids = _unpacked(entry["top_ids"], np.int32, (count, NUM_TOP))
    if top_ids.min() < 0 or top_ids.max() >= vocab_size or ids.max() >= vocab_size or ids[-count:].min() < 0:
        raise ValueError(f"ids outside the vocabulary of {vocab_size}")
    exact = _unpacked(entry["exact"], np.float32, (count, NUM_TOP + NUM_SAMPLED))
    built = exact if entry["built"] is None else _unpacked(entry["built"], np.float32, exact.shape)
    log_sum_exp, spread = (_unpacked(entry[name], np.float32, (count,)) for name in ("log_sum_exp", "spread"))
    task, prompt, answer = (str(entry[name]) for name in ("task", "prompt", "answer"))
    return Probe(task, picture, prompt, answer, ids, count, top_ids, exact, built, log_sum_exp, spread)


def _listed(value: Any, limit: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > limit:
        raise ValueError(f"expected a list of at most {limit}")
    return value


def _packed(array: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()).decode()


def _unpacked(text: Any, dtype: Any, shape: tuple[int, ...] | None) -> Array:
    """An array of finite numbers; `shape` None: one dimension of any length."""
    raw = np.frombuffer(base64.b64decode(text, validate=True), np.dtype(dtype).newbyteorder("<")).astype(dtype)
    array = raw if shape is None else raw.reshape(shape)
    if not np.isfinite(array).all():
        raise ValueError("a number that is not finite")
    return array
