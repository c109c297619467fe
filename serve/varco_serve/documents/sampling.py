"""How to choose an answer's tokens: OpenAI's fields, and those of vLLM, as options of the runtime."""

from __future__ import annotations

from typing import Any

from varco_runtime.bundle.settings import MAX_LONG_SIDE_PX
from varco_runtime.generation.stopping import MAX_STOP_CHARS, MAX_STOP_STRINGS
from varco_serve.documents.errors import RequestError
from varco_serve.documents.fields import Fields, checked_number, checked_text, shown

MAX_TOKENS = (1 << 31) - 1
"""Largest number of tokens that is taken for one; the worker clamps it to the room that is left."""
MAX_SEED = (1 << 63) - 1 - 4
"""The largest seed: with several answers the next numbers seed the others."""
MAX_BIASES = 1024
_LEAST_TEMPERATURE = 1e-3
"""Below it float32 cannot tell logits apart any more, and the likeliest token is meant."""
_MAX_ID_DIGITS = 9


def answer_options(fields: Fields) -> dict[str, Any]:
    """Return the runtime's options that a request gives; absent ones are left to the runtime.

    Args:
        fields: The request's.

    Raises:
        RequestError: A value is out of bounds, or of another type.
    """
    options = {
        "max_new_tokens": _max_new_tokens(fields),
        "temperature": _temperature(fields),
        "top_p": fields.number("top_p", 0, 1),
        "top_k": fields.whole("top_k", 0, MAX_TOKENS),
        "min_p": fields.number("min_p", 0, 1),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "repetition_penalty": fields.number("repetition_penalty", 1e-3, 1e3),
        "seed": fields.whole("seed", 0, MAX_SEED),
        "stop": _stop(fields),
        "logit_bias": _logit_bias(fields),
        "ignore_eos": fields.flag("ignore_eos"),
        "stop_loops": fields.flag("stop_loops"),
        "tiling": fields.choice("tiling", "auto", "grid", "one"),
        "untrained": fields.flag("untrained"),
        "long_side": fields.whole("long_side", 0, MAX_LONG_SIDE_PX),
    }
    return {name: value for name, value in options.items() if value is not None}


def _max_new_tokens(fields: Fields) -> int | None:
    """Return the fewest of both names' tokens: OpenAI's older one, and the one that replaced it."""
    asked = [fields.whole(name, 1, MAX_TOKENS) for name in ("max_tokens", "max_completion_tokens")]
    return min((number for number in asked if number is not None), default=None)


def _temperature(fields: Fields) -> float | None:
    temperature = fields.number("temperature", 0, 2)
    return 0.0 if temperature is not None and temperature < _LEAST_TEMPERATURE else temperature


def _stop(fields: Fields) -> list[str] | None:
    value = fields.take("stop")
    path = fields.path("stop")
    if value is None:
        return None
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise fields.refused("stop", value, "a text, or a list of texts")
    if len(value) > MAX_STOP_STRINGS:
        raise RequestError(f"{path} has {len(value):,} texts, expected at most {MAX_STOP_STRINGS}.", param=path)
    strings = [checked_text(one, f"{path}[{index}]", MAX_STOP_CHARS) for index, one in enumerate(value)]
    if "" in strings:
        raise RequestError(f"{path} holds an empty text, expected at least one character in each.", param=path)
    return strings or None


def _logit_bias(fields: Fields) -> dict[str, float] | None:
    value = fields.take("logit_bias")
    if value is None:
        return None
    path = fields.path("logit_bias")
    if not isinstance(value, dict):
        raise fields.refused("logit_bias", value, "an object of token ids and numbers from -100 to 100")
    if len(value) > MAX_BIASES:
        raise RequestError(f"{path} has {len(value):,} tokens, expected at most {MAX_BIASES:,}.", param=path)
    for id_ in value:
        is_id = id_.isascii() and id_.isdecimal() and len(id_) <= _MAX_ID_DIGITS and str(int(id_)) == id_
        if not is_id:
            raise RequestError(f"{path} names the token {shown(id_)}, expected a token id such as '15'.", param=path)
    found = {id_: checked_number(bias, f"{path}.{id_}", -100, 100) for id_, bias in value.items()}
    return {id_: bias for id_, bias in found.items() if bias} or None
