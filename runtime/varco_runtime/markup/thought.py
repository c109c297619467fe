"""The thought in front of an answer, `<think>...</think>`, which Qwen3 models may write: no part of the plain text."""

from __future__ import annotations

THINK, END_OF_THOUGHT = "<think>", "</think>"


class Thought:
    """Leaves a thought out of text that comes in pieces.

    It begins where nothing but white space stands before it, and the white space behind it belongs to it. A `<think>`
    anywhere else is text.
    """

    def __init__(self) -> None:
        self._held = ""
        self._state = "before"

    @property
    def is_open(self) -> bool:
        """Return whether a thought has begun and not ended."""
        return self._state == "within"

    def feed(self, piece: str) -> tuple[str, int]:
        """Return the text to read, and how many characters in front of it were left out since the last call."""
        if self._state == "behind":
            return piece, 0
        text, self._held = self._held + piece, ""
        left_out = 0
        if self._state == "before":
            body = text.lstrip()
            if THINK.startswith(body[: len(THINK)]) and len(body) < len(THINK):  # white space alone, or a beginning
                self._held = text
                return "", 0
            if not body.startswith(THINK):
                self._state = "behind"
                return text, 0
            self._state = "within"
            left_out = len(text) - len(body) + len(THINK)
            text = text[left_out:]
        if self._state == "within":
            end = text.find(END_OF_THOUGHT)
            if end < 0:
                self._held = text[max(0, len(text) - len(END_OF_THOUGHT) + 1) :]
                return "", left_out + len(text) - len(self._held)
            self._state = "after"
            left_out += end + len(END_OF_THOUGHT)
            text = text[end + len(END_OF_THOUGHT) :]
        rest = text.lstrip()
        if rest:
            self._state = "behind"
        return rest, left_out + len(text) - len(rest)

    def finish(self) -> str:
        """Return what was held back and is no thought, when no more text comes."""
        held, self._held = self._held, ""
        return held if self._state == "before" else ""
