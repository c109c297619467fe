"""How far two models' logits are apart, per token, with standard errors over answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from varco_runtime.dtypes import Array


def log_softmax(logits: Array) -> Array:
    """Row by row, in fp64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def divergence(reference: Array, logits: Array) -> tuple[Array, Array]:
    """KL(reference || model) in nats and top-1 agreement, each `[tokens]`, of two logits `[tokens, vocab]`."""
    p, q = log_softmax(reference), log_softmax(logits)
    return (np.exp(p) * (p - q)).sum(axis=-1), p.argmax(axis=-1) == q.argmax(axis=-1)


@dataclass(frozen=True, slots=True)
class ByAnswer:
    """Of each answer, KL summed over its tokens, in nats, and their number; both `[answers]`."""

    kl: Array
    num_tokens: Array

    def mean(self) -> tuple[float, float]:
        """KL per token, and its standard error over answers, since the tokens of one answer are not independent.

        The mean is a ratio, KL of all answers over tokens of all answers, and both vary from answer to answer. The
        error is that of the ratio estimator (Cochran, Sampling Techniques, 3rd edition, 6.4), from the residuals
        `kl_i - mean * num_tokens_i`; NaN for a single answer.
        """
        total, count = float(self.num_tokens.sum()), len(self.kl)
        mean = float(self.kl.sum()) / total
        if count < 2:
            return mean, math.nan
        residuals = self.kl - mean * self.num_tokens
        return mean, math.sqrt(count / (count - 1) * float(np.square(residuals).sum())) / total

    def gain(self, other: ByAnswer) -> tuple[float, float]:
        """How much smaller another model's KL per token of the same answers is, and the error, paired by answer."""
        assert np.array_equal(self.num_tokens, other.num_tokens), "Bug: gains are between the same answers"
        return ByAnswer(self.kl - other.kl, self.num_tokens).mean()


def distance(pairs: list[tuple[Array, Array]]) -> tuple[dict[str, Any], ByAnswer]:
    """The figures of answers whose `divergence` is given, and the KL of each."""
    by_answer = ByAnswer(
        np.array([kl.sum() for kl, _ in pairs], np.float64), np.array([len(kl) for kl, _ in pairs], np.float64)
    )
    mean, error = by_answer.mean()
    figures = {
        "num_tokens": int(by_answer.num_tokens.sum()),
        "kl": mean,
        "kl_error": error,
        "top1_agreement": float(np.concatenate([agrees for _, agrees in pairs]).mean()),
    }
    return figures, by_answer
