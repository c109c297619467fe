"""How likely the model found each token of an answer, where that is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Score:
    """One chosen token's probability.

    Args:
        token: Its id.
        logprob: The natural logarithm of its probability.
        top: The likeliest tokens at its place with theirs, the likeliest first, of equals the lower id.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def score(logits: npt.NDArray[np.float32], token: int, num_top: int) -> Score:
    """Return the score of a token, by the softmax of the logits `[vocab]` as the model gives them.

    That is before bias, penalties, constraint and temperature: vLLM's `raw_logprobs`, its default.
    """
    most = float(logits.max())
    norm = most + float(np.log(np.exp(logits - np.float32(most)).sum(dtype=np.float64)))
    return Score(
        token, float(logits[token]) - norm, tuple((id_, float(logits[id_]) - norm) for id_ in _top(logits, num_top))
    )


def _top(logits: npt.NDArray[np.float32], count: int) -> list[int]:
    count = min(count, logits.size)
    if count == 0:
        return []
    least = np.partition(logits, logits.size - count)[logits.size - count]
    ids = np.flatnonzero(logits >= least)  # all that equal the least; the lower ids of them stay
    return [int(id_) for id_ in ids[np.argsort(-logits[ids], kind="stable")][:count]]
