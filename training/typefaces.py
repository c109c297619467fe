"""The typefaces of the pictures: subsets of fonts under the SIL Open Font License, shipped in `training/fonts/`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import ImageFont

FOLDER = Path(__file__).parent / "fonts"
HANGUL_TYPEFACES = ("gothic", "gothic-bold", "square-bold")
LATIN_TYPEFACES = (*HANGUL_TYPEFACES, "sans", "sans-bold", "serif-bold")


@cache
def typeface(name: str, size_px: int) -> ImageFont.FreeTypeFont:
    """Return one typeface at one size, laid out without kerning, so that pictures are the same on every machine."""
    return ImageFont.truetype(FOLDER / f"{name}.ttf", size_px, layout_engine=ImageFont.Layout.BASIC)


@cache
def advance_px(name: str, size_px: int, character: str) -> float:
    """Return how far one character moves the pen."""
    return typeface(name, size_px).getlength(character)
