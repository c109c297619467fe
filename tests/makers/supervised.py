"""A supervisor with a real worker, on an event loop of its own thread: tests ask it as the front does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.makers.server import DEMO_BUNDLE
from varco_serve.messages import Ask, AskTurn, Done, Event, Failed, Pixels
from varco_serve.settings import ServeSettings
from varco_serve.supervisor.supervisor import Supervisor

Result = TypeVar("Result")


class Supervised:
    """A supervisor that runs, and is ready.

    Args:
        bundle: What it loads.
        **changed: Its settings.
    """

    def __init__(self, bundle: Path = DEMO_BUNDLE, **changed: Any) -> None:
        self.log: list[tuple[str, dict[str, Any]]] = []
        options = {"slots": 2, "threads": 1, "provider": "cpu", **changed}
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.supervisor = self.run(self._start(ServeSettings(bundle, **options)))

    async def _start(self, settings: ServeSettings) -> Supervisor:
        supervisor = Supervisor(settings, lambda event, **fields: self.log.append((event, fields)))
        self.running = asyncio.create_task(supervisor.run())
        ready = asyncio.create_task(supervisor.until_ready())
        await asyncio.wait([self.running, ready], return_when=asyncio.FIRST_COMPLETED, timeout=60)
        return supervisor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _stop(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)

    def run(self, work: Coroutine[Any, Any, Result], timeout_s: float = 120) -> Result:
        """Run something on the loop, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def events(self, ask: Ask) -> list[Event]:
        """Return all events of an answer."""
        return self.run(events_of(self.supervisor, ask))


async def events_of(supervisor: Supervisor, ask: Ask) -> list[Event]:
    """Return all events of an answer."""
    return [event async for event in supervisor.ask(ask)]


def end_of(events: list[Event]) -> Done | Failed:
    """Return an answer's end."""
    last = events[-1]
    assert isinstance(last, Done | Failed)
    return last


def question(text: str, *pictures: Pixels, **options: Any) -> Ask:
    """Return a question about pictures."""
    return Ask((AskTurn("user", (*range(len(pictures)), text)),), pictures, options)
