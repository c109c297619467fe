"""What a supervisor does when things happen at the same moment, or in an odd order: with workers that play a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.child import Children, ScriptedChild
from tests.makers.supervised import end_of, events_of, question
from varco_serve.messages import Begun, Done, Event, Failed, Pixels, Said
from varco_serve.settings import ServeSettings
from varco_serve.supervisor import supervisor as module
from varco_serve.supervisor.process import Process
from varco_serve.supervisor.supervisor import EndedError, Supervisor

COUNTS = {"kv_tokens": 10, "kv_max_tokens": 200, "kept_bytes": 5, "picture_hits": 2, "picture_misses": 3}


class Place:
    """A supervisor whose workers play a script."""

    def __init__(self, supervisor: Supervisor, children: Children, running: asyncio.Task[None]) -> None:
        self.supervisor, self.children, self.running = supervisor, children, running
        self.log: list[tuple[str, dict[str, Any]]] = []

    @property
    def worker(self) -> ScriptedChild:
        return self.children.workers[-1]

    def ask(self, text: str = "Hi", *pictures: Pixels) -> asyncio.Task[list[Event]]:
        return asyncio.create_task(events_of(self.supervisor, question(text, *pictures)))


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(30):
        await asyncio.sleep(0)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Place], Awaitable[None]]], None]:
    """Runs a test on an event loop, with a supervisor whose first worker was started and has said nothing yet."""
    monkeypatch.setattr("varco_serve.supervisor.deaths.FIRST_WAIT_S", 0.0)

    @asynccontextmanager
    async def place() -> AsyncIterator[Place]:
        children = Children()
        monkeypatch.setattr(Process, "start", children.start)
        log: list[tuple[str, dict[str, Any]]] = []
        supervisor = Supervisor(
            ServeSettings(Path("bundle"), max_queue=3), lambda event, **fields: log.append((event, fields))
        )
        running = asyncio.create_task(supervisor.run())
        await settle()
        made = Place(supervisor, children, running)
        made.log = log
        try:
            yield made
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def run(test: Callable[[Place], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with asyncio.timeout(60), place() as made:  # what waits that long waits for ever
                await test(made)

        asyncio.run(whole())

    return run


Play = Callable[[Callable[[Place], Coroutine[Any, Any, None]]], None]


def test_what_was_let_in_before_the_signal_is_answered(play: Play) -> None:
    """A request whose picture was being decoded when SIGTERM came asks after it."""

    async def test(place: Place) -> None:
        place.worker.load()
        await settle()
        place.supervisor.drain()
        assert place.supervisor.not_ready == "draining"
        asking = place.ask()
        await settle()
        place.worker.tell(1, Begun(3))
        place.worker.finish(1)
        assert isinstance(end_of(await asking), Done)

    play(test)


def test_a_question_that_no_frame_holds_is_refused_and_its_slot_is_free(play: Play) -> None:
    async def test(place: Place) -> None:
        place.worker.load(slots=1)
        await settle()
        failed = end_of(await place.ask("Hi", *[Pixels(1, 1, bytes(3))] * 9))
        assert isinstance(failed, Failed)
        assert (failed.status, failed.code) == (400, "context_length_exceeded")
        assert place.supervisor.stats.running == 0
        asking = place.ask()
        await settle()
        assert place.worker.asked() == [2]
        place.worker.finish(2)
        assert isinstance(end_of(await asking), Done)

    play(test)


@pytest.mark.parametrize("ends", [True, False], ids=["it ends at that moment", "it goes on for ever"])
def test_a_worker_is_killed_only_where_a_cancelled_answer_keeps_its_slot(
    play: Play, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    monkeypatch.setattr(module, "_HUNG_S", 0.0)

    async def test(place: Place) -> None:
        place.worker.load()
        await settle()
        worker, asking = place.worker, place.ask()
        await settle()
        worker.tell(1, Begun(3))
        await settle()
        asking.cancel()
        if ends:
            worker.finish(1)
        await asyncio.sleep(0.01)
        await settle()
        assert worker.was_killed is not ends
        assert [event for event, _ in place.log] == ([] if ends else ["worker_hangs", "worker_died"])

    play(test)


def test_a_cancelled_answer_keeps_its_slot_until_the_worker_says_so(play: Play) -> None:
    async def test(place: Place) -> None:
        place.worker.load(slots=1)
        await settle()
        first, second, third = place.ask(), place.ask(), place.ask()
        await settle()
        second.cancel()  # waits: the worker never hears of it
        first.cancel()
        await settle()
        assert place.worker.asked() == [1]
        assert place.worker.cancelled() == [1]
        place.worker.finish(1)
        await settle()
        assert place.worker.asked() == [1, 3]
        place.worker.tell(1, Said("late", "late"))  # of what nobody knows any more
        place.worker.finish(3)
        assert isinstance(end_of(await third), Done)

    play(test)


def test_questions_wait_while_the_worker_is_away_and_begin_in_their_order(play: Play) -> None:
    async def test(place: Place) -> None:
        place.worker.load(slots=2)
        await settle()
        place.worker.die()
        await settle()
        assert place.supervisor.not_ready == "restarting"
        asking = [place.ask() for _ in range(6)]
        await settle()
        refused = end_of(await asking[5])  # two slots that will be free, and three places in the queue
        assert isinstance(refused, Failed)
        assert refused.status == 429
        place.worker.load(slots=1)  # memory has room for fewer now
        await settle()
        assert place.supervisor.not_ready is None
        for id_ in range(1, 6):
            assert place.worker.asked()[-1] == id_
            place.worker.finish(id_)
            await settle()
        assert [type(end_of(await one)) for one in asking[:5]] == [Done] * 5

    play(test)


def test_a_worker_that_cannot_load_again_is_tried_again(play: Play) -> None:
    """Memory may be short for a moment: only the first refusal ends the server."""

    async def test(place: Place) -> None:
        place.worker.load()
        await settle()
        asking = [place.ask() for _ in range(3)]  # the third waits
        await settle()
        place.worker.die()
        await settle()
        assert len(place.children.workers) == 2
        place.worker.say({"kind": "refused", "message": "no memory", "status": 1})
        await settle()
        assert ("worker_refused", {"line": "no memory"}) in place.log
        place.worker.load()
        await settle()
        place.worker.finish(3)
        ends = [end_of(await one) for one in asking]
        assert [type(end) for end in ends] == [Failed, Failed, Done]
        assert place.supervisor.stats.restarts == 2

    play(test)


def test_a_first_refusal_ends_the_server(play: Play) -> None:
    async def test(place: Place) -> None:
        place.worker.say({"kind": "refused", "message": "It has no tokenizer.", "status": 2})
        await settle()
        error = place.running.exception()
        assert isinstance(error, EndedError)
        assert (str(error), error.status) == ("It has no tokenizer.", 2)

    play(test)


def test_before_the_first_load_nothing_is_asked(play: Play) -> None:
    async def test(place: Place) -> None:
        failed = end_of(await place.ask())
        assert isinstance(failed, Failed)
        assert (failed.status, failed.code) == (503, "loading")
        assert failed.retry_after_s

    play(test)


def test_sums_outlive_a_worker(play: Play) -> None:
    async def test(place: Place) -> None:
        for restarts in (0, 1):
            place.worker.load()
            await settle()
            asking = place.ask()
            await settle()
            place.worker.finish(place.worker.asked()[-1], counts=COUNTS)
            await asking
            stats = place.supervisor.stats
            assert (stats.picture_hits, stats.picture_misses) == (2 * (restarts + 1), 3 * (restarts + 1))
            assert (stats.kv_tokens, stats.restarts) == (10, restarts)
            place.worker.die()
            await settle()
            assert place.supervisor.stats.kv_tokens == 0

    play(test)


def test_at_the_end_whoever_still_waits_is_told(play: Play) -> None:
    async def test(place: Place) -> None:
        place.worker.load(slots=1)
        await settle()
        asking = [place.ask(), place.ask()]
        await settle()
        place.running.cancel()
        for one in asking:
            failed = end_of(await one)
            assert isinstance(failed, Failed)
            assert failed.status == 503
            assert "starting again" not in failed.message

    play(test)


def test_the_end_of_the_picture_process_is_no_end_of_the_server(play: Play) -> None:
    async def test(place: Place) -> None:
        picture_process = next(child for child in place.children.started if child.module == "varco_serve.pictures")
        picture_process.die()
        await settle()
        assert place.supervisor.stats.restarts == 1
        assert [event for event, _ in place.log] == ["pictures_ended"]
        assert not place.running.done()

    play(test)
