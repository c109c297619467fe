"""How far two models' logits are apart, and means with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


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


def distance(pairs: list[tuple[Array, Array]]) -> tuple[dict[str, Any], Array]:
    """The figures of answers whose `divergence` is given, and the mean KL of each.

    `kl_error` is over answers, since the tokens of one answer are not independent.
    """
    by_answer = np.array([kl.mean() for kl, _ in pairs])
    figures = {
        "num_tokens": sum(len(kl) for kl, _ in pairs),
        "kl": float(np.concatenate([kl for kl, _ in pairs]).mean()),
        "kl_error": mean_error(by_answer)[1],
        "top1_agreement": float(np.concatenate([agrees for _, agrees in pairs]).mean()),
    }
    return figures, by_answer
