"""Text, plain text and regions from token ids, as they come."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace

from varco_runtime.answer.answer import Piece
from varco_runtime.answer.token_score import TokenScore
from varco_runtime.generation.repetition import LoopDetector
from varco_runtime.generation.stopping import StopStrings
from varco_runtime.generation.token_scores import Score
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
        ignore_eos: Whether it goes on behind such a token, which has no text either way.

    Raises:
        UsageError: The stop strings are out of bounds.

    Attributes:
        token_ids: All tokens, the one that ended the answer included.
        scores: Of all tokens, where `feed` was given them.
        token_times: When each of them came, on the clock of `time.perf_counter`.
        finish_reason: Why the answer ended, `stop`, `stop_string`, `loop` or what `finish` was told; None before.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        eos_token_ids: Collection[int],
        stop: tuple[str, ...],
        stop_loops: bool = False,
        ignore_eos: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._ignore_eos = ignore_eos
        self._decoder = StreamDecoder(tokenizer)
        self._eos = eos_token_ids
        self._stop = StopStrings(stop)
        self._parser = StreamParser()
        self._loops = LoopDetector() if stop_loops else None
        self._warnings: tuple[str, ...] = ()
        self._num_told = 0
        self.token_ids: list[int] = []
        self.scores: list[TokenScore] = []
        self.token_times: list[float] = []
        self._texts: list[str] = []
        self.finish_reason: str | None = None

    def feed(self, token: int, score: Score | None = None) -> Piece:
        """Take one token, and return what it lets out; sets `finish_reason` when it ended the answer.

        Args:
            token: Its id.
            score: Its probability, where that is asked for.
        """
        self.token_ids.append(token)
        self.token_times.append(time.perf_counter())
        if score is not None:
            self.scores.append(self._with_bytes(score))
        if token in self._eos:
            self.finish_reason = None if self._ignore_eos else "stop"
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
        regions = tuple(event for event in events if isinstance(event, Region))
        return Piece(text, plain_text, regions, self._new_scores() if self.scores and (text or final) else ())

    def _new_scores(self) -> tuple[TokenScore, ...]:
        """Return the scores that no piece has had."""
        told, self._num_told = self._num_told, len(self.scores)
        return tuple(self.scores[told:])

    def _with_bytes(self, score: Score) -> TokenScore:
        bytes_of = self._tokenizer.token_bytes
        top = tuple((id_, bytes_of(id_), logprob) for id_, logprob in score.top)
        return TokenScore(score.token, bytes_of(score.token), score.logprob, top)
