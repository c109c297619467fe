"""VARCO's grammar: text <-> regions, and the questions written in it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varco_runtime.markup.parser import MAX_QUAD_CHARS, MAX_WARNINGS, Event, StreamParser, parse
    from varco_runtime.markup.questions import OCR_PROMPT, ground_prompt, refer_prompt
    from varco_runtime.markup.regions import MARKUP_TOKENS, Box, Kind, Parsed, Region
    from varco_runtime.markup.writer import render

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
    "parser": ("MAX_QUAD_CHARS", "MAX_WARNINGS", "Event", "StreamParser", "parse"),
    "questions": ("OCR_PROMPT", "ground_prompt", "refer_prompt"),
    "regions": ("MARKUP_TOKENS", "Box", "Kind", "Parsed", "Region"),
    "writer": ("render",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
