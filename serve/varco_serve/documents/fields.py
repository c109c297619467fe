"""The fields of a JSON object, each read with its type and its bounds. null means that a field is absent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from varco_serve.documents.errors import RequestError

_MAX_SHOWN_CHARS = 40
_MAX_SHOWN_BITS = 128
_MAX_EXACT = 1 << 53
"""Whole numbers up to it are exact as floats, in which some clients write them."""


class Fields:
    """A JSON object that knows which of its fields were asked for.

    Args:
        document: The object.
        path: Where it stands in the request, as `messages[3]`; empty for the request itself.

    Raises:
        RequestError: It is no object.
    """

    def __init__(self, document: object, path: str = "") -> None:
        if not isinstance(document, Mapping):
            where = path or "The request's body"
            raise RequestError(f"{where} is {shown(document)}, expected an object.", param=path or None)
        self._document = document
        self._path = path
        self._known: set[str] = set()

    def path(self, name: str) -> str:
        """Return where a field stands in the request."""
        return f"{self._path}.{name}" if self._path else name

    def take(self, name: str) -> Any:
        """Return a field's value, whatever it is; None where it is absent."""
        self._known.add(name)
        return self._document.get(name)

    def peek(self, name: str) -> Any:
        """Return a field's value, and leave it among those that nobody has asked for."""
        return self._document.get(name)

    def number(self, name: str, low: float, high: float) -> float | None:
        """Return a number from `low` to `high`.

        Raises:
            RequestError: It is another, or none.
        """
        value = self.take(name)
        return None if value is None else checked_number(value, self.path(name), low, high)

    def whole(self, name: str, low: int, high: int) -> int | None:
        """Return a whole number from `low` to `high`; 5.0 is one.

        Raises:
            RequestError: It is another, or none.
        """
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, float) and abs(value) <= _MAX_EXACT and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.refused(name, value, f"a whole number from {low} to {high}")
        return value

    def flag(self, name: str) -> bool | None:
        """Return true or false.

        Raises:
            RequestError: It is neither.
        """
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise self.refused(name, value, "true or false")
        return value

    def text(self, name: str, max_chars: int) -> str | None:
        """Return a text of at most `max_chars` characters.

        Raises:
            RequestError: It is longer, holds half a character, or is no text.
        """
        value = self.take(name)
        return None if value is None else checked_text(value, self.path(name), max_chars)

    def choice(self, name: str, *choices: str) -> str | None:
        """Return one of some texts.

        Raises:
            RequestError: It is none of them.
        """
        value = self.take(name)
        if value is not None and not (isinstance(value, str) and value in choices):
            raise self.refused(name, value, f"one of {', '.join(choices)}")
        return value

    def inner(self, name: str) -> Fields | None:
        """Return a field that is an object itself.

        Raises:
            RequestError: It is none.
        """
        value = self.take(name)
        return None if value is None else Fields(value, self.path(name))

    def rest(self) -> list[str]:
        """Return the names of the fields that are there and that nobody has asked for."""
        return [name for name, value in self._document.items() if name not in self._known and value is not None]

    def refused(self, name: str, value: object, expected: str) -> RequestError:
        """Return the error for a field's value.

        Args:
            name: The field.
            value: What it is.
            expected: What it should be, as the end of a sentence.
        """
        if value is None:  # null means that a field is absent
            path = self.path(name)
            return RequestError(f"{path} is missing, expected {expected}.", param=path)
        return _refused(self.path(name), value, expected)


def checked_number(value: Any, path: str, low: float, high: float) -> float:
    """Return a value that is a number from `low` to `high`.

    Args:
        value: Whatever stands there.
        path: Where it stands in the request.
        low: The least that it may be.
        high: The most.

    Raises:
        RequestError: It is another number, or none.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # NaN is in no range
        raise _refused(path, value, f"a number from {low:g} to {high:g}")
    return float(value)


def checked_text(value: object, path: str, max_chars: int) -> str:
    """Return a value that is a text.

    Args:
        value: Whatever stands there.
        path: Where it stands in the request.
        max_chars: How long it may be.

    Raises:
        RequestError: It is longer, holds half a character, or is no text.
    """
    if not isinstance(value, str):
        raise _refused(path, value, "a text")
    if len(value) > max_chars:
        raise RequestError(f"{path} has {len(value):,} characters, expected at most {max_chars:,}.", param=path)
    if has_surrogate(value):
        raise RequestError(f"{path} holds half a character (a lone surrogate), expected Unicode text.", param=path)
    return value


def _refused(path: str, value: object, expected: str) -> RequestError:
    return RequestError(f"{path} is {shown(value)}, expected {expected}.", param=path)


def has_surrogate(text: str) -> bool:
    """Return whether a text holds a half of a surrogate pair, which UTF-8 cannot write."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def shown(value: object) -> str:
    """Return a value for an error's line: short, and never a part of a line that a caller wrote whole."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        cut = value[:_MAX_SHOWN_CHARS]
        return repr(cut) if cut == value else f"{cut!r}..., {len(value):,} characters"
    if isinstance(value, int):
        return str(value) if value.bit_length() <= _MAX_SHOWN_BITS else "a number of very many digits"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else "not finite"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else "something else"
