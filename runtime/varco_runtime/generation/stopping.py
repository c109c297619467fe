"""Stop strings, found in text that comes in pieces.

Text that may be the beginning of a stop string is held back until it is clear, so nothing of a stop string is ever
given out, however it is cut into pieces. Of several, the one that ends first counts, of those that end together the
longest: so the result does not depend on the pieces.
"""

from __future__ import annotations

from collections.abc import Sequence

from varco_runtime.errors import UsageError

MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1024


class StopStrings:
    """Cuts a stream of text before the first stop string.

    Args:
        stops: At most 64 strings of 1 to 1,024 characters.

    Raises:
        UsageError: There are more, or longer ones, or an empty one.

    Attributes:
        stopped: The stop string that was found, or None.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if len(stops) > MAX_STOP_STRINGS:
            raise UsageError(f"{len(stops)} stop strings were given, expected at most {MAX_STOP_STRINGS}. Pass fewer.")
        for stop in stops:
            if not 1 <= len(stop) <= MAX_STOP_CHARS:
                raise UsageError(
                    f"A stop string has {len(stop):,} characters, expected 1 to {MAX_STOP_CHARS:,}. Change that one."
                )
        self._stops = tuple(stops)
        self._held = ""
        self.stopped: str | None = None

    def feed(self, text: str) -> str:
        """Take more text, and return the text that can be given out now; nothing more once `stopped` is set."""
        if self.stopped is not None:
            return ""
        self._held += text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if found:
            _, start, self.stopped = min(found)
            return self._give_out(start)
        return self._give_out(len(self._held) - max((self._begun(stop) for stop in self._stops), default=0))

    def finish(self) -> str:
        """Return what was held back, when no more text comes."""
        return "" if self.stopped is not None else self._give_out(len(self._held))

    def _give_out(self, num_chars: int) -> str:
        given, self._held = self._held[:num_chars], self._held[num_chars:]
        return given

    def _begun(self, stop: str) -> int:
        """Return how many characters of `stop` the held text ends with, less than all of them."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
