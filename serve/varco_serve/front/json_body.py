"""JSON from outside: bounds before anything is made of it, then nothing that a number or a text cannot be."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from varco_serve.documents.errors import RequestError
from varco_serve.front.limits import FrontLimits

_MAX_DIGITS = 40


def parse_json(body: bytes | bytearray, limits: FrontLimits) -> Any:
    """Return what a JSON text says.

    Args:
        body: UTF-8.
        limits: How many parts and levels it may have.

    Raises:
        RequestError: 400, it is no JSON, too large to be made objects of, or holds NaN, infinities or half characters.
    """
    # Each costs a hundred bytes or more as an object. Those within texts count too: no conversation has so many.
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > limits.max_structures:
        raise _refused(f"has more than {limits.max_structures} commas and brackets")
    try:
        document = _DECODER.decode(body.decode())
    except UnicodeDecodeError:
        raise _refused("is not UTF-8") from None
    except RecursionError:
        raise _refused(f"has more than {limits.max_depth} levels") from None
    except json.JSONDecodeError as error:
        raise _refused(f"is no JSON: {error.msg} at character {error.pos}") from None
    _check(document, limits.max_depth)
    return document


def _check(document: Any, max_depth: int) -> None:
    level = [document]
    for _ in range(max_depth + 1):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                _check_text(value)
            elif isinstance(value, dict):
                below += value
                below += value.values()
            elif isinstance(value, list):
                below += value
        level = below
    if level:
        raise _refused(f"has more than {max_depth} levels")


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _refused("has half a character (a lone surrogate) in a text") from None


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _refused("has a number that is too large")
    return number


def _int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _refused("has a number that is too large")
    return int(digits)


def _constant(name: str) -> NoReturn:
    raise _refused(f"has {name}, which is no number in JSON")


def _refused(what: str) -> RequestError:
    return RequestError(f"The request's body {what}.", code="invalid_json")


_DECODER = json.JSONDecoder(parse_float=_float, parse_int=_int, parse_constant=_constant)
