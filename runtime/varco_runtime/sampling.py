"""The next token from the logits.

Repetition penalty, temperature, top-k, top-p and min-p follow transformers' `generation/logits_process.py` in meaning,
order and edge cases (ties at the k-th place stay, top-p keeps at least one, min-p is relative to the most probable).
The draw itself is numpy's, so a seed gives the same answer everywhere but another one than torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from varco_runtime.errors import BackendError, UsageError
from varco_runtime.settings import GenerationSettings

MIN_TEMPERATURE = 1e-3  # below it, logits / temperature leaves what float32 can tell apart

_BELOW_ONE = 1 - 2.0**-52
"""A sum times this, rounded, is less than the sum."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How to choose. Raises `UsageError` for a value out of range.

    `temperature` 0 is greedy, and top-k (0: off), top-p (1: off) and min-p (0: off) then have no effect.
    `repetition_penalty` None is the bundle's; 1 is off. `seed` None draws anew each time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _expect("temperature", self.temperature, "0 (greedy) or 0.001 to 1000", _is_temperature(self.temperature))
        _expect("top_k", self.top_k, "a whole number from 0 (off)", _is_whole(self.top_k) and self.top_k >= 0)
        _expect("top_p", self.top_p, "a number from 0 to 1 (off)", _is_number(self.top_p) and 0 <= self.top_p <= 1)
        _expect("min_p", self.min_p, "a number from 0 (off) to 1", _is_number(self.min_p) and 0 <= self.min_p <= 1)
        penalty = 1.0 if self.repetition_penalty is None else self.repetition_penalty
        _expect(
            "repetition_penalty", penalty, "a number from 0.001 to 1000", _is_number(penalty) and 1e-3 <= penalty <= 1e3
        )
        seed = 0 if self.seed is None else self.seed
        _expect("seed", seed, "a whole number from 0 to 2^64 - 1", _is_whole(seed) and 0 <= seed < 1 << 64)


@dataclass(frozen=True, slots=True)
class Draw:
    """What a device needs to choose as `Sampler.next` would.

    penalty: the repetition penalty, for the ids `seen`.
    temperature: what scores are divided by.
    top_k: how many scores stay, with all that equal the least of them; at least 1, and the vocabulary's size for all.
    cut: the part of the probability that top-p removes, from the least score on; below 1.
    min_p: the least probability that stays, relative to the greatest.
    place: the place of the draw among what stays, in 0 .. 1, ids in ascending order; below 1.
    """

    penalty: float
    seen: npt.NDArray[np.int64]
    temperature: float
    top_k: int
    cut: float
    min_p: float
    place: float


FIRST_OF_THE_GREATEST = Draw(1.0, np.empty(0, np.int64), 1.0, 1, 0.0, 0.0, 0.0)
"""The greedy choice: of the scores that equal the greatest, the first."""


class Sampler:
    """Chooses the tokens of one answer, and counts those that the repetition penalty is for.

    `prompt_ids` count for the penalty when the checkpoint's generation does so (`GenerationSettings`).
    `overflow_advice` is the next step of the error for logits that are not finite (`Manifest`).
    """

    def __init__(
        self,
        settings: SamplingSettings,
        generation: GenerationSettings,
        prompt_ids: Iterable[int] = (),
        overflow_advice: str = "Run 'varco verify BUNDLE', or export the decoder in a wider precision.",
    ) -> None:
        self._settings = settings
        self._overflow_advice = overflow_advice
        penalty = settings.repetition_penalty
        self.repetition_penalty = generation.repetition_penalty if penalty is None else penalty
        self._random = np.random.Generator(np.random.PCG64(settings.seed))
        self._seen: set[int] = set()
        if self.repetition_penalty != 1.0 and generation.penalise_prompt:
            self._seen.update(id_ for id_ in prompt_ids if id_ >= 0)  # a placeholder without a row has no logit
        self._seen_ids = np.fromiter(sorted(self._seen), np.int64)
        self._scores: FloatArray | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is always the one with the largest logit."""
        return self._settings.temperature == 0 and self.repetition_penalty == 1.0

    def next(self, logits: FloatArray) -> int:
        """The next token id for logits `[vocab]`, which stay as they are. Raises `BackendError` for NaN or infinity."""
        scores = self._penalised(logits)
        # The first NaN if there is one, else the largest, the first of equals as in torch.
        best = int(np.argmax(scores))
        if not math.isfinite(scores[best]):
            raise BackendError(
                f"The decoder gave the logit {scores[best]} for token {best}, expected finite numbers. "
                f"{self._overflow_advice}"
            )
        token = best if self._settings.temperature == 0 else self._draw(scores)
        self.accept(token)
        return token

    def draw(self, vocab_size: int) -> Draw:
        """The next choice for a device to make from `vocab_size` logits; tell `accept` what it chose."""
        settings, penalty = self._settings, self.repetition_penalty
        if settings.temperature == 0:
            return replace(FIRST_OF_THE_GREATEST, penalty=penalty, seen=self._seen_ids)
        top_k = settings.top_k if 0 < settings.top_k < vocab_size else vocab_size
        cut = min(float(np.float32(1 - settings.top_p)), _BELOW_ONE)
        place = min(self._random.random(), _BELOW_ONE)
        return Draw(penalty, self._seen_ids, settings.temperature, top_k, cut, settings.min_p, place)

    def _penalised(self, logits: FloatArray) -> FloatArray:
        """The logits after the repetition penalty; a copy only if there is something to change."""
        if self._seen_ids.size == 0:
            return logits
        if self._scores is None or self._scores.shape != logits.shape:
            self._scores = np.empty(logits.shape, np.float32)
        np.copyto(self._scores, logits)
        penalty = np.float32(self.repetition_penalty)
        values = logits[self._seen_ids]
        self._scores[self._seen_ids] = np.where(values < 0, values * penalty, values / penalty)
        return self._scores

    def accept(self, token: int) -> None:
        """Count a token that was chosen elsewhere."""
        if self.repetition_penalty != 1.0 and token not in self._seen:
            self._seen.add(token)
            self._seen_ids = np.append(self._seen_ids, token)

    def _draw(self, scores: FloatArray) -> int:
        ids, probabilities = candidates(scores, self._settings)
        cumulative = np.cumsum(probabilities, dtype=np.float64)
        place = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return int(ids[min(place, len(ids) - 1)])


def candidates(scores: FloatArray, settings: SamplingSettings) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """The ids that may be drawn, ascending, and their probabilities, which sum to 1."""
    scores = scores / np.float32(settings.temperature)
    if 0 < settings.top_k < scores.size:
        smallest = np.partition(scores, scores.size - settings.top_k)[scores.size - settings.top_k]
        ids = np.flatnonzero(scores >= smallest)
    else:
        ids = np.arange(scores.size)
    scores = scores[ids]
    if settings.top_p < 1.0:
        order = np.argsort(scores, kind="stable")
        cumulative = np.cumsum(_softmax(scores[order]), dtype=np.float64).astype(np.float32)
        removed = cumulative <= np.float32(1 - settings.top_p)
        removed[-1] = False
        kept = np.sort(order[~removed])
        ids, scores = ids[kept], scores[kept]
    probabilities = _softmax(scores)
    if settings.min_p > 0.0:
        kept = np.flatnonzero(probabilities >= np.float32(settings.min_p) * probabilities.max())
        ids, probabilities = ids[kept], _softmax(scores[kept])
    return ids, probabilities


def _softmax(scores: FloatArray) -> FloatArray:
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum(dtype=np.float64), np.float32)


def _expect(name: str, value: object, expected: str, holds: bool) -> None:
    if not holds:
        raise UsageError(f"{name} is {value!r}, expected {expected}. Change --{name.replace('_', '-')}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_temperature(value: Any) -> bool:
    return _is_number(value) and (value == 0 or MIN_TEMPERATURE <= value <= 1000)
