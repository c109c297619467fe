"""Answers that go round in a circle, as readings of a picture's text do where the model loses its place."""

from __future__ import annotations

from collections.abc import Sequence

from varco_runtime.markup.regions import Box, Region

MAX_SAME_REGIONS = 3
"""One region, text and box, so many times running is a loop."""
MAX_IDLE_TOKENS = 200
"""So many tokens without new text are one."""
_NEW_CHARS = 8
"""Text is new where so many characters in a row have not stood in the answer before."""


class LoopDetector:
    """Tells when an answer goes round in a circle, from what its tokens let out.

    New text is a region of a text and boxes not seen before, or characters not seen before: a column of zeros, each in
    a box of its own, is no loop.
    """

    def __init__(self) -> None:
        self._seen: set[tuple[str, tuple[Box, ...]] | str] = set()
        self._tail = ""
        self._last: tuple[str, tuple[Box, ...]] | None = None
        self._num_same = 0
        self._num_idle = 0

    def feed(self, plain_text: str, regions: Sequence[Region]) -> str | None:
        """Take what one token let out, and return a sentence if the answer is a loop by now.

        Args:
            plain_text: The characters.
            regions: The regions that it closed.
        """
        is_new = self._has_new_characters(plain_text)
        for region in regions:
            place = region.text, region.boxes
            self._num_same = self._num_same + 1 if place == self._last else 1
            self._last = place
            if self._num_same == MAX_SAME_REGIONS:
                return f"The answer was ended: it said {region.text[:40]!r} {MAX_SAME_REGIONS} times at one place."
            is_new |= place not in self._seen
            self._seen.add(place)
        self._num_idle = 0 if is_new else self._num_idle + 1
        if self._num_idle == MAX_IDLE_TOKENS:
            return f"The answer was ended: its last {MAX_IDLE_TOKENS} tokens held no new text."
        return None

    def _has_new_characters(self, text: str) -> bool:
        joined, is_new = self._tail + text, False
        for end in range(_NEW_CHARS, len(joined) + 1):
            piece = joined[end - _NEW_CHARS : end]
            is_new |= piece not in self._seen
            self._seen.add(piece)
        self._tail = joined[-(_NEW_CHARS - 1) :]
        return is_new
