"""What is added to the logits of single tokens, as callers write it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from varco_runtime.errors import UsageError

MAX_BIASED_TOKENS = 1024
MAX_BIAS = 100


def logit_bias(value: object) -> tuple[tuple[int, float], ...]:
    """Return a mapping of token ids to biases as `SamplingSettings` takes it; None is none.

    Args:
        value: At most `MAX_BIASED_TOKENS` ids, whole numbers or as JSON writes a mapping's keys (`"50256"`), each with
            a number from -100 to 100.

    Raises:
        UsageError: It is anything else.
    """
    if value is None:
        return ()
    what = f"token ids, each with a number from -{MAX_BIAS} to {MAX_BIAS}"
    if not isinstance(value, Mapping):
        raise UsageError(f"logit_bias is of type {type(value).__name__}, expected a mapping of {what}. Give one.")
    if len(value) > MAX_BIASED_TOKENS:
        raise UsageError(f"logit_bias names {len(value):,} tokens, expected at most {MAX_BIASED_TOKENS:,}. Give fewer.")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        id_ = int(key) if isinstance(key, str) and re.fullmatch("[0-9]{1,9}", key) else key
        is_bias = isinstance(bias, int | float) and not isinstance(bias, bool) and -MAX_BIAS <= bias <= MAX_BIAS
        if not isinstance(id_, int) or isinstance(id_, bool) or id_ < 0 or not is_bias:
            raise UsageError(f"logit_bias holds {str(key)[:40]!r}: {str(bias)[:40]}, expected {what}. Change that one.")
        if id_ in biases:
            raise UsageError(f"logit_bias names token {id_} twice, expected each once. Leave one out.")
        biases[id_] = float(bias)
    return tuple(biases.items())
