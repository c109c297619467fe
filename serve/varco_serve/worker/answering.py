"""One question on its way through the worker."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from varco_runtime import Varco
from varco_runtime.answer.answer import Piece
from varco_runtime.answer.formats import to_json_regions
from varco_runtime.conversation import Part, Turn, check_number
from varco_runtime.errors import VarcoError, one_line
from varco_runtime.picture.loading import Picture, load_picture
from varco_runtime.stream import Stream, start_stream
from varco_serve.messages import Ask, Begun, Done, Event, Pixels, Said, TokenScore
from varco_serve.worker.failures import failed_of
from varco_serve.worker.forms import Forms


class Answering:
    """Answers one ask, and tells its events.

    Args:
        varco: The model.
        forms: Its grammars.
        tell: Takes each event.
    """

    def __init__(self, varco: Varco, forms: Forms, tell: Callable[[Event], None]) -> None:
        self._varco = varco
        self._forms = forms
        self._tell = tell
        self._stream: Stream | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        """Say no more after the current token. Another thread may call it at any time."""
        self._is_cancelled = True
        if self._stream is not None:
            self._stream.cancel()

    def run(self, ask: Ask) -> None:
        """Answer, and tell `Begun`, what is `Said`, and `Done` or `Failed` at the end."""
        try:
            self._run(ask)
        except (VarcoError, MemoryError) as error:
            failed = failed_of(error)
            if failed.status >= 500:
                print(f"An answer failed: {type(error).__name__}: {one_line(error, 500)}", file=sys.stderr, flush=True)
            self._tell(failed)

    def _run(self, ask: Ask) -> None:
        options: Any = dict(ask.options)
        if ask.grammar is not None:
            options["constraint"] = self._forms.constraint(ask.grammar)
        stream = self._stream = start_stream(self._varco.session, lambda: self._turns(ask), options)
        if self._is_cancelled:
            stream.cancel()
        self._tell(Begun(stream.num_prompt_tokens))
        one_size = _one_size(ask)
        for piece in stream:
            self._tell(_said(piece, one_size))
        answer = stream.answer
        self._tell(Done(answer.to_dict()))

    def _turns(self, ask: Ask) -> list[Turn]:
        check_number(len(ask.pictures), self._varco.bundle.manifest)
        pictures = [_picture(one) for one in ask.pictures]
        return [Turn(turn.role, tuple(_part(part, pictures) for part in turn.parts)) for turn in ask.turns]


def _part(part: str | int, pictures: list[Picture]) -> Part:
    return part if isinstance(part, str) else pictures[part]


def _picture(pixels: Pixels) -> Picture:
    """Return the picture that a file with these pixels gives."""
    array = np.frombuffer(pixels.rgb, np.uint8).reshape(pixels.height, pixels.width, 3)
    picture = load_picture(array)
    return Picture(picture.image, picture.width, picture.height, picture.digest, pixels.is_animated)


def _one_size(ask: Ask) -> tuple[int, int] | None:
    """Return width and height of the only picture, to which boxes refer."""
    return (ask.pictures[0].width, ask.pictures[0].height) if len(ask.pictures) == 1 else None


def _said(piece: Piece, size: tuple[int, int] | None) -> Said:
    tokens = tuple(TokenScore(one.token_id, one.data, one.logprob, one.top) for one in piece.tokens)
    return Said(piece.text, piece.plain_text, tuple(to_json_regions(piece.regions, size)), tokens)
