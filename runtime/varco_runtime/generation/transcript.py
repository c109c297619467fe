"""Text, plain text and regions from token ids, as they come."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace

from varco_runtime.answer.answer import Piece
from varco_runtime.generation.repetition import LoopDetector
from varco_runtime.generation.stopping import StopStrings
from varco_runtime.markup.parser import StreamParser
from varco_runtime.markup.regions import Parsed, Region
from varco_runtime.prompt.tokenizer import StreamDecoder, Tokenizer


class Transcript:
    """Token ids on their way to text, plain text and regions.

    Holds back what may still change: bytes of an unfinished character, a possible beginning of a stop string or tag.

    Args:
        tokenizer: Makes text of tokens.
        eos_token_ids: The tokens that end an answer.
        stop: The strings that end an answer.
        stop_loops: Whether an answer that goes round in a circle is ended.

    Raises:
        UsageError: The stop strings are out of bounds.

    Attributes:
        token_ids: All tokens, the one that ended the answer included.
        token_times: When each of them came, on the clock of `time.perf_counter`.
        finish_reason: Why the answer ended, `stop`, `stop_string`, `loop` or what `finish` was told; None before.
    """

    def __init__(
        self, tokenizer: Tokenizer, eos_token_ids: Collection[int], stop: tuple[str, ...], stop_loops: bool = False
    ) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._eos = eos_token_ids
        self._stop = StopStrings(stop)
        self._parser = StreamParser()
        self._loops = LoopDetector() if stop_loops else None
        self._warnings: tuple[str, ...] = ()
        self.token_ids: list[int] = []
        self.token_times: list[float] = []
        self._texts: list[str] = []
        self.finish_reason: str | None = None

    def feed(self, token: int) -> Piece:
        """Take one token, and return what it lets out; sets `finish_reason` when it ended the answer."""
        self.token_ids.append(token)
        self.token_times.append(time.perf_counter())
        if token in self._eos:
            self.finish_reason = "stop"
            return Piece("", "", ())
        piece = self._advance(self._stop.feed(self._decoder.feed(token)))
        if self._loops is not None and self.finish_reason is None and not self._parser.is_in_thought:
            loop = self._loops.feed(piece.plain_text, piece.regions)
            if loop is not None:
                self._warnings, self.finish_reason = (loop,), "loop"
        return piece

    def finish(self, reason: str) -> Piece:
        """Return what was held back; `reason` is the finish reason unless the answer ended by itself."""
        rest = "" if self._stop.stopped else self._stop.feed(self._decoder.finish()) + self._stop.finish()
        self.finish_reason = self.finish_reason or reason
        return self._advance(rest, final=True)

    @property
    def text(self) -> str:
        """Return all text so far."""
        return "".join(self._texts)

    @property
    def parsed(self) -> Parsed:
        """Return plain text, regions and warnings; final after `finish`."""
        parsed = self._parser.parsed
        return replace(parsed, warnings=self._warnings + parsed.warnings)

    def _advance(self, text: str, final: bool = False) -> Piece:
        if self._stop.stopped:
            self.finish_reason = "stop_string"
        self._texts.append(text)
        events = self._parser.feed(text)
        if final:
            events += self._parser.finish()
        plain_text = "".join(event for event in events if isinstance(event, str))
        return Piece(text, plain_text, tuple(event for event in events if isinstance(event, Region)))
