"""Regions of an answer: a text or an object, its boxes, and the tags that VARCO's markup writes them with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from varco_runtime.errors import PromptError

MARKUP_TOKENS = ("<gro>", "<ocr>", "<char>", "</char>", "<obj>", "</obj>", "<bbox>", "</bbox>", "<delim>")

Kind = Literal["text", "object"]

TAG = re.compile("|".join(MARKUP_TOKENS))
LONGEST_TAG = max(map(len, MARKUP_TOKENS))
KINDS: dict[str, Kind] = {"<char>": "text", "<obj>": "object"}
OPENING: dict[Kind, str] = {kind: tag for tag, kind in KINDS.items()}
CLOSING: dict[Kind, str] = {"text": "</char>", "object": "</obj>"}


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in fractions of the original picture: 0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1.

    Args:
        x1: The left edge, as a fraction of the width.
        y1: The top edge, as a fraction of the height.
        x2: The right edge.
        y2: The bottom edge.

    Raises:
        PromptError: A number is out of these bounds, or NaN.
    """

    x1: float
    y1: float
    x2: float
    y2: float

    def __post_init__(self) -> None:
        if not (0 <= self.x1 <= self.x2 <= 1 and 0 <= self.y1 <= self.y2 <= 1):
            raise PromptError(
                f"The box ({self.x1}, {self.y1}, {self.x2}, {self.y2}) is not inside the picture: expected x1, y1, x2, "
                "y2 with 0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1. Divide pixels by the picture's width and height."
            )

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom in whole pixels of a `width` x `height` picture.

        Halves are rounded up. The right and bottom edges lie outside, at least one pixel from the left and top ones.
        """
        x1, x2 = _to_pixels(self.x1, self.x2, width)
        y1, y2 = _to_pixels(self.y1, self.y2, height)
        return x1, y1, x2, y2


def _to_pixels(low: float, high: float, side_px: int) -> tuple[int, int]:
    first = min(int(low * side_px + 0.5), side_px - 1)
    return first, min(max(int(high * side_px + 0.5), first + 1), side_px)


@dataclass(frozen=True, slots=True)
class Region:
    """A text (`<char>`) or an object (`<obj>`) and its places.

    Args:
        kind: `text` for what is written in the picture, `object` for what is seen in it.
        text: The characters, or what the object is called.
        boxes: Its places in the picture; none where the answer gave no box.
        start: The offset of `text` in the answer's plain text.
        end: The offset behind it: `plain_text[start:end]` is `text`.
    """

    kind: Kind
    text: str
    boxes: tuple[Box, ...]
    start: int
    end: int

    def pixels(self, width: int, height: int) -> list[tuple[int, int, int, int]]:
        """Return every box in whole pixels of a `width` x `height` picture, as `Box.pixels` does."""
        return [box.pixels(width, height) for box in self.boxes]


@dataclass(frozen=True, slots=True)
class Parsed:
    """An answer that was read.

    Args:
        plain_text: The answer without its tags and boxes.
        regions: Its regions, in the order of the text.
        warnings: A sentence for each thing that was odd about its markup, at most `MAX_WARNINGS` and one that counts
            the rest.
    """

    plain_text: str
    regions: tuple[Region, ...] = ()
    warnings: tuple[str, ...] = ()


def quad_text(box: Box) -> str:
    """Return a box as the markup writes it: four numbers of at most three decimals."""
    return ", ".join(f"{value:.3f}".rstrip("0").rstrip(".") for value in (box.x1, box.y1, box.x2, box.y2))
