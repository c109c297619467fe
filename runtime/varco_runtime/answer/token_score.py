"""One token of an answer and its probability: imports nothing, for whoever passes answers on without making them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One token of an answer and how likely the model found it, before bias, penalties, constraint and temperature.

    Args:
        token_id: Its id.
        data: Its bytes, which may be a part of a character; of an added token its text.
        logprob: The natural logarithm of its probability.
        top: The likeliest tokens at its place, the likeliest first: id, bytes, logarithm.
    """

    token_id: int
    data: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()
