"""The answers that one request asks for, all at once, as one sequence of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, cast

from varco_serve.front.observer import Observer
from varco_serve.front.record import Record
from varco_serve.messages import Ask, Begun, Done, Event, Failed, Model, Said

_WAITING = 64
"""Events that may wait for a client that reads slowly, before the worker's have to."""


class Asks:
    """Several answers under way. Leaving the context cancels those that have not ended, and waits until they have.

    Args:
        model: What answers.
        num_answers: How many there will be.
        prepare: Makes the questions, one for each answer; what it raises ends them all.
        let_go: Called once all have a place in the worker, which holds their pictures from then on, and at the end.
        observer: What watches them.
        record: Of the request that asks.
    """

    def __init__(
        self,
        model: Model,
        num_answers: int,
        prepare: Callable[[], Awaitable[Sequence[Ask]]],
        let_go: Callable[[], None],
        observer: Observer,
        record: Record,
    ) -> None:
        self._model = model
        self._prepare: Callable[[], Awaitable[Sequence[Ask]]] | None = prepare
        self._let_go = let_go
        self._observer = observer
        self._record = record
        self._events: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue(_WAITING)
        self._tasks: list[asyncio.Task[None]] = []
        self._num_to_begin = self._num_open = num_answers

    async def __aenter__(self) -> Asks:
        self._tasks.append(asyncio.create_task(self._start()))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._let_go()

    async def next(self, timeout_s: float | None = None) -> tuple[int, Begun | Said | Done] | None:
        """Return the next event and the number of its answer; None once all answers are done.

        Args:
            timeout_s: How long to wait for one.

        Raises:
            AnswerError: An answer failed, which ends them all.
            TimeoutError: None came in time.
        """
        if self._num_open == 0:
            return None
        async with asyncio.timeout(timeout_s):
            index, event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Failed):
            raise AnswerError(event)
        self._num_open -= isinstance(event, Done)
        return index, event

    async def _start(self) -> None:
        watching = [self._observer.asking(self._record) for _ in range(self._num_open)]
        # Whoever answers lets go of pictures in time, and so do we: nothing here holds on to a question.
        prepare, self._prepare = self._prepare, None
        assert prepare is not None, "Bug: the same answers were asked for twice."
        try:
            asks = await prepare()
        except Exception as error:
            await self._events.put((0, error))
            return
        reading = enumerate(zip(asks, watching, strict=True))
        self._tasks += [asyncio.create_task(self._read(index, ask, observe)) for index, (ask, observe) in reading]

    async def _read(self, index: int, ask: Ask, observe: Callable[[Event], None]) -> None:
        try:
            has_ended = False
            iterator = self._model.ask(ask)
            del ask
            async with aclosing(cast(Any, iterator)) as events:
                async for event in cast(AsyncIterator[Event], events):
                    observe(event)
                    if isinstance(event, Begun):
                        self._count_begun()
                    await self._events.put((index, event))
                    has_ended = isinstance(event, Done | Failed)
            if not has_ended:
                raise RuntimeError("Bug: an answer ended without its end.")
        except Exception as error:
            await self._events.put((index, error))

    def _count_begun(self) -> None:
        self._num_to_begin -= 1
        if self._num_to_begin == 0:
            self._let_go()


class AnswerError(Exception):
    """The worker could not answer.

    Args:
        failed: Why.
    """

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed
