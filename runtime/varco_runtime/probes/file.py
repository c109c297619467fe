"""What a file of acceptance probes holds, and its JSON: types, bounds, contradictions."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from varco_runtime.bundle.manifest import Manifest
from varco_runtime.bundle.schema import is_shallow
from varco_runtime.dtypes import Array
from varco_runtime.errors import BackendError
from varco_runtime.probes.digest import GROUP_SIZE, NUM_GROUPS
from varco_runtime.probes.limits import FEATURE_LIMITS, FORMATS

VERSION = 2
"""Version 1 has one number of noise, counted over all tokens, and neither facts nor divergences."""
MAX_BYTES = 4 << 20
MAX_PICTURES = 8
MAX_PROBES = 16
MAX_ENTRIES = 64
MAX_COUNT = 8
SHOWS = ("picture", "pictures", "video")
MAX_DEPTH = 4
MAX_TOKENS = 1 << 15
DISTURBANCE = 1e-6
"""How much the inputs of linears change, relative to themselves, for `Noise.text_arithmetic`."""
NUM_TOP = 32
NUM_SAMPLED = 16
_SEED = 20241105


@dataclass(frozen=True, slots=True)
class ProbePicture:
    """A drawn picture and digests `[3, 128]` of what the networks should make of it, their weights rounded as they are.

    In files of version 1 they are those of the exact networks. `shows`: what the picture is seen as, one of `SHOWS`: by
    itself, or cut from left to right into `count` pictures or frames of equal width.
    """

    name: str
    png: bytes
    vision: Array
    projector: Array
    image_tokens: Array
    newlines: Array
    shows: str = "picture"
    count: int = 1


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
class Noise:
    """The logit error that rounding causes in this model, in questions without and with pictures.

    `text` and `pictures`: of the inputs of linears to int8 or FP8, 0 where none are. `..._arithmetic`: of a disturbance
    of a part in a million at every linear; None in files of version 1.
    """

    text: float
    pictures: float
    text_arithmetic: float | None = None
    pictures_arithmetic: float | None = None


@dataclass(frozen=True, slots=True)
class Probes:
    """What a probes file holds.

    `vision` and `decoder`: the coarsest number format of each network's weights. `facts`: what the checkpoint says
    (`facts.py`). `divergences`: KL from full precision by the option of the export that was changed (`grade.py`).
    """

    vision: str
    decoder: str
    noise: Noise
    facts: dict[str, Any]
    divergences: dict[str, float]
    pictures: tuple[ProbePicture, ...]
    probes: tuple[Probe, ...]

    @property
    def is_tight(self) -> bool:
        """Whether the file tells what rounding does to this model. Those of version 1 do not."""
        return self.noise.text_arithmetic is not None

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


def sampled_ids(vocab_size: int) -> Array:
    """The fixed tokens whose logits are kept at every position, int32 `[16]`."""
    return np.random.RandomState(_SEED).randint(0, vocab_size, NUM_SAMPLED).astype(np.int32)


def kept_ids(top_ids: Array, vocab_size: int) -> Array:
    """The tokens whose logits are kept at each position, int64 `[n, 48]`: the likeliest and the fixed ones."""
    sampled = np.broadcast_to(sampled_ids(vocab_size), (len(top_ids), NUM_SAMPLED))
    return np.concatenate([top_ids, sampled], axis=1).astype(np.int64)


def to_json(probes: Probes) -> bytes:
    """The file's content: JSON, with pictures and arrays in base64."""
    document = {
        "version": VERSION,
        "vision": probes.vision,
        "decoder": probes.decoder,
        "noise": asdict(probes.noise),
        "facts": probes.facts,
        "divergences": probes.divergences,
        "pictures": [
            {
                "name": picture.name,
                "png": base64.b64encode(picture.png).decode(),
                **{name: _packed(getattr(picture, name)) for name in _DIGESTS},
                **({} if picture.shows == "picture" else {"shows": picture.shows, "count": picture.count}),
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


def probes_of(document: dict[str, Any], manifest: Manifest) -> Probes:
    """The probes of a file's JSON, for the bundle of `manifest`.

    Raises `ValueError`, `KeyError` or `TypeError` for anything that `to_json` would not write for that bundle.
    """
    version = document["version"]
    if version not in (1, VERSION):
        raise ValueError(f"version {version!r}, expected 1 to {VERSION}")
    pictures = tuple(_picture_of(entry) for entry in _listed(document["pictures"], MAX_PICTURES))
    vocab_size = manifest.model.vocab_size
    probes = tuple(_probe_of(entry, len(pictures), vocab_size) for entry in _listed(document["probes"], MAX_PROBES))
    if version == 1:
        noise = Noise(*[_number(document["noise"])] * 2)
        facts, divergences = {}, {}
    else:
        noise = Noise(**{field.name: _number(document["noise"][field.name]) for field in fields(Noise)})
        facts, divergences = _entries(document["facts"]), _entries(document["divergences"])
        divergences = {name: _number(value) for name, value in divergences.items()}
    found = Probes(document["vision"], document["decoder"], noise, facts, divergences, pictures, probes)
    if found.vision not in FEATURE_LIMITS or found.decoder not in FORMATS:
        raise ValueError(f"formats {found.vision!r} and {found.decoder!r}, expected known ones")
    if not probes:
        raise ValueError("no probes")
    if found.max_tokens > manifest.max_context:
        raise ValueError(f"{found.max_tokens} tokens, expected at most {manifest.max_context}")
    return found


def _picture_of(entry: dict[str, Any]) -> ProbePicture:
    digests = {name: _unpacked(entry[name], np.float32, (NUM_GROUPS, GROUP_SIZE)) for name in _DIGESTS}
    shows, count = entry.get("shows", "picture"), entry.get("count", 1)
    if shows not in SHOWS or type(count) is not int or not 1 <= count <= MAX_COUNT:
        raise ValueError(f"a picture that shows {shows!r} of {count!r}")
    return ProbePicture(
        str(entry["name"]), base64.b64decode(entry["png"], validate=True), **digests, shows=shows, count=count
    )


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
    if (exact[:, :NUM_TOP].max(axis=1) > log_sum_exp + 1e-3 * (1 + np.abs(log_sum_exp))).any():
        raise ValueError("a logit above the logarithm of the sum of all")
    task, prompt, answer = (str(entry[name]) for name in ("task", "prompt", "answer"))
    return Probe(task, picture, prompt, answer, ids, count, top_ids, exact, built, log_sum_exp, spread)


def _number(value: Any) -> float:
    """A number that is finite and not negative."""
    number = float(value)
    if not 0 <= number < float("inf"):
        raise ValueError(f"the number {number}")
    return number


def _entries(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > MAX_ENTRIES or not is_shallow(value, MAX_DEPTH):
        raise ValueError(f"expected a shallow object of at most {MAX_ENTRIES} entries")
    return value


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
