"""Child processes that do what a test says, in place of `supervisor.process.Process`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from varco_serve.codec import event_header, facts_header
from varco_serve.messages import Done, Event, Facts
from varco_serve.wire import TooLargeError, WireError

DOCUMENT = {"text": "a"}


class ScriptedChild:
    """One child.

    Args:
        module: What it would run.
        pid: Its number.

    Attributes:
        sent: The headers of all frames that it was sent.
        max_parts: How many parts a frame may have; one with more is too large.
        was_killed: Whether somebody ended it.
    """

    reader = writer = None

    def __init__(self, module: str, pid: int) -> None:
        self.module = module
        self.pid = pid
        self.sent: list[dict[str, Any]] = []
        self.max_parts = 8
        self.was_killed = False
        self._said: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._ended = asyncio.Event()

    def say(self, header: dict[str, Any]) -> None:
        """Let it send a frame."""
        self._said.put_nowait(header)

    def load(self, slots: int = 2) -> None:
        """Let it tell that the model is there."""
        self.say(facts_header(Facts(100, slots, 4, 50)))

    def tell(self, id_: int, event: Event, **more: Any) -> None:
        """Let it tell an event."""
        self.say({"id": id_, **event_header(event), **more})

    def finish(self, id_: int, **more: Any) -> None:
        """Let it end an answer."""
        self.tell(id_, Done(DOCUMENT), **more)

    def die(self) -> None:
        """End."""
        self._said.put_nowait(None)
        self._ended.set()

    def asked(self) -> list[int]:
        """Return the numbers of what it was asked so far."""
        return [header["id"] for header in self.sent if header["kind"] == "ask"]

    def cancelled(self) -> list[int]:
        """Return the numbers of what it was told to cancel."""
        return [header["id"] for header in self.sent if header["kind"] == "cancel"]

    async def send(self, header: dict[str, Any], *parts: bytes) -> None:
        if len(parts) > self.max_parts:
            raise TooLargeError("too large")
        self.sent.append(header)

    async def receive(self) -> tuple[dict[str, Any], bytes]:
        header = await self._said.get()
        if header is None:
            raise WireError("ended")
        return dict(header), b""

    def kill(self) -> None:
        self.was_killed = True
        self.die()

    async def wait(self) -> int:
        await self._ended.wait()
        return -9

    async def end(self) -> int:
        self._ended.set()
        return -9


class Children:
    """Starts scripted children, and keeps them: `Process.start` in their place."""

    def __init__(self) -> None:
        self.started: list[ScriptedChild] = []

    async def start(self, module: str, on_line: Callable[[str], None]) -> ScriptedChild:
        child = ScriptedChild(module, 1000 + len(self.started))
        self.started.append(child)
        return child

    @property
    def workers(self) -> list[ScriptedChild]:
        """All workers so far, the one that lives last."""
        return [child for child in self.started if child.module == "varco_serve.worker"]
