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
from varco_runtime.picture.loading import Picture, load_picture
from varco_runtime.stream import Stream, start_stream
from varco_serve.messages import Ask, Begun, Done, Event, Pixels, Said
from varco_serve.traces import places_of
from varco_serve.wire import WireError
from varco_serve.worker.failures import failed_of
from varco_serve.worker.forms import Forms

_MAX_PLACES = 12


class Answering:
    """Answers one ask, and tells its events.

    Args:
        varco: The model.
        forms: Its grammars.
        tell: Takes each event.

    Attributes:
        num_pictures: The pictures of the question, once it has been answered.
    """

    def __init__(self, varco: Varco, forms: Forms, tell: Callable[[Event], None]) -> None:
        self._varco = varco
        self._forms = forms
        self._tell = tell
        self._stream: Stream | None = None
        self._is_cancelled = False
        self.num_pictures = 0

    @property
    def num_encoded(self) -> int:
        """Return how many of the pictures were encoded: the others were known from an earlier question."""
        return 0 if self._stream is None else self._stream.num_encoded_media

    def cancel(self) -> None:
        """Say no more after the current token. Another thread may call it at any time."""
        self._is_cancelled = True
        if self._stream is not None:
            self._stream.cancel()

    def run(self, ask: Ask) -> bool:
        """Answer, and tell `Begun`, what is `Said`, and `Done` or `Failed` at the end.

        Returns:
            Whether the model can be trusted further: False after a failure that is not the question's fault.

        Raises:
            WireError: Nobody listens any more.
        """
        try:
            self._run(ask)
        except WireError:
            raise
        except Exception as error:  # whatever it is, it ends this answer alone
            failed = failed_of(error)
            if failed.status >= 500:
                _log(error)
            self._tell(failed)
            return failed.status < 500
        return True

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
        if answer.token_ids:  # else it was cancelled, perhaps before its pictures were looked at
            self.num_pictures = len(ask.pictures)
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
    return Said(piece.text, piece.plain_text, tuple(to_json_regions(piece.regions, size)), piece.tokens)


def _log(error: Exception) -> None:
    """Say what failed and where, for the server's log. Not the error's text: it may hold the question's."""
    where = " < ".join(reversed(places_of(error, _MAX_PLACES)))
    print(f"An answer failed: {type(error).__name__} at {where}", file=sys.stderr, flush=True)
