"""Choosing the next token from the logits.

Repetition penalty, temperature, top-k, top-p and min-p follow transformers' `generation/logits_process.py` in meaning,
order and edge cases (ties at the k-th place stay, top-p keeps at least one, min-p is relative to the most probable).
The draw itself is numpy's, so a seed gives the same answer everywhere but another one than torch.

What a server's callers ask for beside them comes in vLLM's order: logit bias, repetition penalty, frequency and
presence penalty, constraint, temperature, top-k, top-p, min-p. Logarithms of probabilities are those of the logits
before all of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from varco_runtime.backend import GREEDY, Draw
from varco_runtime.bundle.settings import GenerationSettings
from varco_runtime.errors import BackendError, UsageError
from varco_runtime.generation.constraint import Constraint, checked_mask
from varco_runtime.generation.token_scores import MAX_TOP_LOGPROBS, Score, score

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
        presence_penalty: -2 to 2: taken from the logit of each token that is in the answer so far; 0 is off.
        frequency_penalty: -2 to 2: taken from it for each time that it is there; 0 is off. Both as OpenAI defines them.
        logit_bias: Token ids, each once, and what is added to their logits, -100 to 100.
        top_logprobs: How many of the likeliest tokens are told beside each token's own probability, 0 to 20; None
            tells nothing.

    Raises:
        UsageError: A value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int | None = None

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
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _expect_value(name, value, "a number from -2 to 2", _is_number(value) and -2 <= value <= 2)
        num_top, most = self.top_logprobs, MAX_TOP_LOGPROBS
        in_range = num_top is None or (_is_whole(num_top) and 0 <= num_top <= most)
        _expect_value("top_logprobs", num_top, f"a whole number from 0 to {most}, or None", in_range)

    @property
    def is_plain(self) -> bool:
        """Return whether a device that chooses tokens itself knows all of the settings."""
        return not (self.presence_penalty or self.frequency_penalty or self.logit_bias or self.top_logprobs is not None)


class Sampler:
    """Chooses the tokens of one answer, and counts those that the repetition penalty is for.

    Args:
        settings: What the question asks for.
        generation: What the bundle says where the question does not.
        prompt_ids: The prompt's tokens, for which the penalty counts where the checkpoint's generation does so.
        overflow_advice: The next step of the error for logits that are not finite (`Manifest`).
        constraint: Which tokens may be chosen; None for all.

    Attributes:
        scores: Of the tokens that `next` chose, in their order, where they are asked for; whoever reads takes them out.
    """

    def __init__(
        self,
        settings: SamplingSettings,
        generation: GenerationSettings,
        prompt_ids: Iterable[int] = (),
        overflow_advice: str = "Run 'varco verify BUNDLE', or export the decoder in a wider precision.",
        constraint: Constraint | None = None,
    ) -> None:
        self._settings = settings
        self._constraint = constraint
        self.is_constrained = constraint is not None
        self.needs_logits = constraint is not None or not settings.is_plain
        """Whether a device's own choice would not do."""
        self.scores: deque[Score] = deque()
        self._bias_ids = np.array([id_ for id_, _ in settings.logit_bias], np.int64)
        self._bias = np.array([bias for _, bias in settings.logit_bias], np.float32)
        self._counts: dict[int, int] = {}
        self._overflow_advice = overflow_advice
        penalty = settings.repetition_penalty
        self.repetition_penalty = generation.repetition_penalty if penalty is None else penalty
        self._random = np.random.Generator(np.random.PCG64(settings.seed))
        self._seen: set[int] = set()
        if self.repetition_penalty != 1.0 and generation.penalise_prompt:
            self._seen.update(id_ for id_ in prompt_ids if id_ >= 0)  # a placeholder without a row has no logit
        self._seen_ids = np.fromiter(sorted(self._seen), np.int64)
        self._scores: FloatArray | None = None
        self._place: float | None = None

    @property
    def is_greedy(self) -> bool:
        """Return whether the next token is always the one with the largest logit, and nothing else is asked for."""
        return self._settings.temperature == 0 and self.repetition_penalty == 1.0 and not self.needs_logits

    def next(self, logits: FloatArray) -> int:
        """Choose a token from logits `[vocab]`, which stay as they are, and return its id.

        Raises:
            BackendError: The largest logit is no finite number.
            UsageError: The constraint allows nothing.
        """
        if self.needs_logits:
            return self._next_adjusted(logits)
        scores = self._penalized(logits)
        best = self._best(scores)
        token = best if self._settings.temperature == 0 else self._draw(scores)
        self.accept(token)
        return token

    def forced(self) -> Sequence[int]:
        """Return the tokens that must come next by the constraint; none without one."""
        return () if self._constraint is None else self._constraint.forced()

    def _best(self, scores: FloatArray) -> int:
        """Return the largest score's token. Raises `BackendError` where it is no finite number."""
        # The first NaN if there is one, else the largest, the first of equals as in torch.
        best = int(np.argmax(scores))
        if not math.isfinite(scores[best]):
            raise BackendError(
                f"The decoder gave the logit {scores[best]} for token {best}, expected finite numbers. "
                f"{self._overflow_advice}"
            )
        return best

    def _next_adjusted(self, logits: FloatArray) -> int:
        """Choose a token as `next` does, with all that the host alone knows of."""
        self._best(logits)
        token = self._chosen(logits)
        if self._settings.top_logprobs is not None:
            self.scores.append(score(logits, token, self._settings.top_logprobs))
        if self._constraint is not None:
            self._constraint.accept(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        self.accept(token)
        return token

    def _chosen(self, logits: FloatArray) -> int:
        forced = self.forced()
        if forced:
            return forced[0]
        scores, is_greedy = self._adjusted(logits), self._settings.temperature == 0
        best = self._best(scores)
        if self._constraint is None:
            return best if is_greedy else self._draw(scores)
        allowed = checked_mask(self._constraint.allowed(), scores.shape)
        if is_greedy and allowed[best]:
            return best
        ids = np.flatnonzero(allowed)  # what is forbidden has no place in the draw, however it is rounded
        scores = scores[ids]
        best = self._best(scores)
        return int(ids[best if is_greedy else self._draw(scores)])

    def _adjusted(self, logits: FloatArray) -> FloatArray:
        """Return the logits after bias and penalties; a copy only if there is something to change."""
        settings = self._settings
        if self._bias_ids.size:
            logits = logits.copy()
            logits[self._bias_ids] += self._bias
        scores = self._penalized(logits)
        if self._counts and (settings.frequency_penalty or settings.presence_penalty):
            scores = logits.copy() if scores is logits else scores
            ids = np.fromiter(self._counts, np.int64, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            scores[ids] -= counts * np.float32(settings.frequency_penalty) + np.float32(settings.presence_penalty)
        return scores

    def draw(self, vocab_size: int) -> Draw:
        """Return the next choice for a device to make from `vocab_size` logits; tell `accept` what it chose.

        Until then it stays the same, so that a step which failed can be taken in another way.
        """
        settings, penalty = self._settings, self.repetition_penalty
        if settings.temperature == 0:
            return GREEDY if penalty == 1 else replace(GREEDY, penalty=penalty, seen=self._seen_ids)
        top_k = settings.top_k if 0 < settings.top_k < vocab_size else vocab_size
        cut = min(float(np.float32(1 - settings.top_p)), _BELOW_ONE)
        place = min(self._next_place(), _BELOW_ONE)
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
        self._place = None
        if self.repetition_penalty != 1.0 and token not in self._seen:
            self._seen.add(token)
            self._seen_ids = np.append(self._seen_ids, token)

    def _draw(self, scores: FloatArray) -> int:
        ids, probabilities = candidates(scores, self._settings)
        cumulative = np.cumsum(probabilities, dtype=np.float64)
        place = int(np.searchsorted(cumulative, self._next_place() * cumulative[-1], side="right"))
        return int(ids[min(place, len(ids) - 1)])

    def _next_place(self) -> float:
        """Return the place of the next draw in 0 .. 1, the same until a token is accepted."""
        if self._place is None:
            self._place = self._random.random()
        return self._place


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


def _expect_value(name: str, value: object, expected: str, holds: bool) -> None:
    """As `_expect`, for what is no option of the command."""
    if not holds:
        raise UsageError(f"{name} is {value!r}, expected {expected}. Give another {name}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_temperature(value: Any) -> bool:
    return _is_number(value) and (value == 0 or MIN_TEMPERATURE <= value <= 1000)
