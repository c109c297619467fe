"""Pictures are decoded shortly before their turn: until then a request holds its files, a tenth of their pixels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from varco_serve.front.asks import AnswerError
from varco_serve.front.body import Share
from varco_serve.messages import Failed, Model, Pixels

AHEAD = 2
"""Requests whose pictures are decoded while all slots are taken, so that a slot that becomes free need not wait."""


class Decoding:
    """Decodes the pictures of requests in the order in which they came, a few requests ahead of the worker.

    Args:
        model: What decodes them.
        num_slots: Returns how many answers run at once.
        timeout_s: How long a request may wait for its turn.
    """

    def __init__(self, model: Model, num_slots: Callable[[], int], timeout_s: float) -> None:
        self._model = model
        self._num_slots = num_slots
        self._timeout_s = timeout_s
        self._turns: asyncio.Semaphore | None = None

    def hold(self, share: Share) -> Hold:
        """Return what a request holds, nothing but its share of the memory at first."""
        if self._turns is None:  # how many slots there are is known once the model is
            self._turns = asyncio.Semaphore(self._num_slots() + AHEAD)
        return Hold(share, self._turns)

    async def decoded(self, pictures: Sequence[bytes], params: Sequence[str | None], hold: Hold) -> tuple[Pixels, ...]:
        """Return the pixels of a request's pictures, once it is its turn.

        Args:
            pictures: Files.
            params: Where each stands in the request; None for its body.
            hold: What the request holds.

        Raises:
            AnswerError: One cannot be decoded, or the request has waited too long.
            RequestError: 503, the pictures of all requests are too much for the server's memory.
        """
        if not pictures:
            return ()
        try:
            async with asyncio.timeout(self._timeout_s):
                await hold.take_turn()
        except TimeoutError:
            message = f"The question waited {self._timeout_s:g} s for its turn, which is the longest. Ask again later."
            raise AnswerError(Failed(503, message, "queue_timeout", None, 10.0)) from None
        decoded = []
        for picture, param in zip(pictures, params, strict=True):
            pixels = await self._model.decode(picture)
            if isinstance(pixels, Failed):
                raise AnswerError(replace(pixels, param=param if pixels.status == 400 else None))
            hold.share.take(len(pixels.rgb))
            decoded.append(pixels)
        return tuple(decoded)


class Hold:
    """What one request holds until the worker has it: a share of the memory, and a turn if it has pictures.

    Args:
        share: Of the memory: the bytes of its body, then those of its pixels too.
        turns: Of all requests.
    """

    def __init__(self, share: Share, turns: asyncio.Semaphore) -> None:
        self.share = share
        self._turns = turns
        self._has_turn = False

    async def take_turn(self) -> None:
        """Wait until it may hold pixels."""
        await self._turns.acquire()
        self._has_turn = True

    def let_go(self) -> None:
        """Hold nothing any more."""
        self.share.give_back()
        if self._has_turn:
            self._has_turn = False
            self._turns.release()
