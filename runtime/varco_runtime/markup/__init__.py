"""VARCO's grammar: text <-> regions, and the questions written in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varco_runtime.lazy import hand_on

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

__getattr__ = hand_on(
    __name__,
    {
        "parser": ("MAX_QUAD_CHARS", "MAX_WARNINGS", "Event", "StreamParser", "parse"),
        "questions": ("OCR_PROMPT", "ground_prompt", "refer_prompt"),
        "regions": ("MARKUP_TOKENS", "Box", "Kind", "Parsed", "Region"),
        "writer": ("render",),
    },
)
