"""Probabilities of an answer's tokens, laid out as OpenAI does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from varco_runtime.answer.token_score import TokenScore

LEAST_LOGPROB = -9999.0
"""What OpenAI writes for a probability that is next to nothing; JSON has no infinity."""


def to_logprobs(tokens: Iterable[TokenScore]) -> dict[str, Any]:
    """Return a choice's `logprobs`.

    Args:
        tokens: Tokens with their probabilities.
    """
    content = [
        _entry(token.data, token.logprob) | {"top_logprobs": [_entry(data, logprob) for _, data, logprob in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _entry(data: bytes, logprob: float) -> dict[str, Any]:
    """Return one token. A piece of a character is U+FFFD in its text; its bytes are exact."""
    value = logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB  # NaN too
    return {"token": data.decode("utf-8", "replace"), "logprob": value, "bytes": list(data)}
