"""Names and values out of a checkpoint's files as messages quote them: in one short line."""

from __future__ import annotations

import json


def show(value: object) -> str:
    """Return a value as JSON spells it, cut to one short line."""
    try:
        text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(type(value))
    text = "missing" if value is None else text
    return text if len(text) <= 80 else text[:77] + "..."


def one_line(value: object, length: int) -> str:
    """Return a value in one line of at most `length` characters that a terminal can print."""
    try:
        text = " ".join(str(value).split())
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= length else text[: length - 3] + "..."


def some(names: list[str]) -> str:
    """Return the first name, how many follow, and the verb: "a is", "a and 3 more are"."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{short(names[0])}{more} {'are' if more else 'is'}"


def short(text: str) -> str:
    """Return a name out of a file in one short line."""
    return one_line(text, 120)
