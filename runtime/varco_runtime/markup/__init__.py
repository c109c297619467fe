"""VARCO's grammar: text <-> regions, and the questions written in it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varco_runtime.markup.parser import (
        MARKUP_TOKENS,
        MAX_QUAD_CHARS,
        MAX_WARNINGS,
        OCR_PROMPT,
        Box,
        Event,
        Kind,
        Parsed,
        Region,
        StreamParser,
        ground_prompt,
        parse,
        refer_prompt,
        render,
    )

__all__ = [
    "MARKUP_TOKENS",
    "MAX_QUAD_CHARS",
    "MAX_WARNINGS",
    "OCR_PROMPT",
    "Box",
    "Event",
    "Kind",
    "Parsed",
    "Region",
    "StreamParser",
    "ground_prompt",
    "parse",
    "refer_prompt",
    "render",
]

_HOMES = {
    "Box": "parser",
    "Event": "parser",
    "Kind": "parser",
    "MARKUP_TOKENS": "parser",
    "MAX_QUAD_CHARS": "parser",
    "MAX_WARNINGS": "parser",
    "OCR_PROMPT": "parser",
    "Parsed": "parser",
    "Region": "parser",
    "StreamParser": "parser",
    "ground_prompt": "parser",
    "parse": "parser",
    "refer_prompt": "parser",
    "render": "parser",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
