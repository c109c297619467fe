"""Choosing the next token from the logits.

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

from varco_runtime.backend import GREEDY, Draw
from varco_runtime.bundle.settings import GenerationSettings
from varco_runtime.errors import BackendError, UsageError

MIN_TEMPERATURE = 1e-3  # below it, logits / temperature leaves what float32 can tell apart

_BELOW_ONE = 1 - 2.0**-52
"""A sum times this, rounded, is less than the sum."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How to choose tokens.

    Args:
        temperature: 0 is greedy, and top-k, top-p and min-p then have no effect; else 0.001 to 1000.
        top_k: Draw from so many of the likeliest tokens; 0 is off.
        top_p: Draw from the likeliest tokens that make up this probability; 1 is off.
        min_p: Draw from tokens with this part of the likeliest one's probability; 0 is off.
        repetition_penalty: 0.001 to 1000; None is the bundle's, 1 is off.
        seed: 0 to 2^64 - 1; None draws anew each time.

    Raises:
        UsageError: A value is out of range.
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


class Sampler:
    """Chooses the tokens of one answer, and counts those that the repetition penalty is for.

    Args:
        settings: What the question asks for.
        generation: What the bundle says where the question does not.
        prompt_ids: The prompt's tokens, for which the penalty counts where the checkpoint's generation does so.
        overflow_advice: The next step of the error for logits that are not finite (`Manifest`).
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
        """Return whether the next token is always the one with the largest logit."""
        return self._settings.temperature == 0 and self.repetition_penalty == 1.0

    def next(self, logits: FloatArray) -> int:
        """Choose a token from logits `[vocab]`, which stay as they are, and return its id.

        Raises:
            BackendError: The largest logit is no finite number.
        """
        scores = self._penalized(logits)
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
        """Return the next choice for a device to make from `vocab_size` logits; tell `accept` what it chose."""
        settings, penalty = self._settings, self.repetition_penalty
        if settings.temperature == 0:
            return replace(GREEDY, penalty=penalty, seen=self._seen_ids)
        top_k = settings.top_k if 0 < settings.top_k < vocab_size else vocab_size
        cut = min(float(np.float32(1 - settings.top_p)), _BELOW_ONE)
        place = min(self._random.random(), _BELOW_ONE)
        return Draw(penalty, self._seen_ids, settings.temperature, top_k, cut, settings.min_p, place)

    def _penalized(self, logits: FloatArray) -> FloatArray:
        """Return the logits after the repetition penalty; a copy only if there is something to change."""
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
    """Return the ids that may be drawn, ascending, and their probabilities, which sum to 1.

    `scores` are the logits `[vocab]` after the repetition penalty.
    """
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
