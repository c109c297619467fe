"""What a field of `bundle.json` may hold, written beside its type: `Annotated[int, Range(1, 1 << 16)]`.

The bounds of numbers lie far beyond any model of this family: they say what a loop or an allocation may cost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """The least and the greatest value of a number."""

    low: float
    high: float

    def fault(self, value: float, shown: str) -> str | None:
        """Return what is wrong with a value, or None. Compared as it is: float() of a huge integer raises."""
        return None if self.low <= value <= self.high else f"is {shown}, expected {self.low} to {self.high}"


class OneOf:
    """The words that a text may be."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def fault(self, value: str, shown: str) -> str | None:
        """Return what is wrong with a text, or None."""
        return None if value in self.words else f"is {shown}, expected one of: {', '.join(self.words)}"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression that a whole text matches, and what to call such a text."""

    expression: str
    expected: str

    def fault(self, value: str, shown: str) -> str | None:
        """Return what is wrong with a text, or None."""
        return None if re.fullmatch(self.expression, value) else f"is {shown}, expected {self.expected}"
