"""Clients that leave: their answers end, streamed, in one piece, or still waiting; and nothing is kept."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import weakref
from typing import Any

import httpx
import pytest

from tests.doubles.front import client, front, listening
from tests.doubles.model import PICTURE, ScriptedModel, answer
from varco_serve.front.app import Front
from varco_serve.front.disconnect import unless_gone
from varco_serve.front.watch import Watch
from varco_serve.messages import Ask, Begun, Pixels, Said

CHAT = {"model": "varco", "messages": [{"role": "user", "content": "Hello"}]}
TOGETHER = 20


def endless(ask: Ask, number: int) -> list[Any]:
    """An answer that has a place and says one word; every third still waits for its place."""
    return [asyncio.Event()] if number % 3 == 2 else [Begun(7), Said("a", "a"), asyncio.Event()]


async def _request(port: int, stream: bool) -> asyncio.StreamWriter:
    body = json.dumps({**CHAT, "stream": stream, "n": 2}).encode()
    fields = f"host: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body)
    await writer.drain()
    return writer


async def _cancel(num_requests: int, stream: bool) -> None:
    model = ScriptedModel(endless)
    app = front(model, max_queue=2 * TOGETHER)
    async with listening(app) as port:
        for start in range(0, num_requests, TOGETHER):
            writers = [await _request(port, stream) for _ in range(min(TOGETHER, num_requests - start))]
            while model.num_running < 2 * len(writers):
                await asyncio.sleep(0.001)
            for writer in writers:
                writer.close()
            while model.num_running:
                await asyncio.sleep(0.001)
    assert (model.num_cancelled, app.num_running) == (2 * num_requests, 0)


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_leave_free_what_they_took_up(stream: bool) -> None:
    asyncio.run(asyncio.wait_for(_cancel(TOGETHER, stream), 60))


@pytest.mark.full
@pytest.mark.parametrize("stream", [True, False])
def test_a_thousand_clients_that_leave_free_what_they_took_up(stream: bool) -> None:
    asyncio.run(asyncio.wait_for(_cancel(1000, stream), 600))


def test_a_client_that_leaves_with_its_whole_answer_was_answered() -> None:
    """uvicorn says `http.disconnect` as soon as an answer is complete, before what made it has been put away."""

    async def asking() -> list[tuple[int, bool]]:
        complete = asyncio.Event()
        records: list[tuple[int, bool]] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await unless_gone(receive, answering(send))

        async def answering(send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": False})
            complete.set()
            await asyncio.Event().wait()

        async def receive() -> dict[str, Any]:
            await complete.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None: ...

        watch = Watch(app, 60.0, time.monotonic, lambda record, _: records.append((record.status, record.has_failed)))
        await watch({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send)
        return records

    assert asyncio.run(asking()) == [(200, False)]


class LettingGo(ScriptedModel):
    """Lets go of a question once it has begun, as the real one does, and knows which pictures are still there."""

    def __init__(self, gate: asyncio.Event) -> None:
        super().__init__([Begun(7), Said("Hello", "Hello"), gate, *answer("Hello", picture=PICTURE)[-1:]])
        self.alive: weakref.WeakSet[Pixels] = weakref.WeakSet()

    async def decode(self, data: bytes) -> Pixels:
        pixels = Pixels(2, 1, bytes(6))
        self.alive.add(pixels)
        return pixels

    async def ask(self, ask: Ask) -> Any:
        del ask
        async for event in super().ask(Ask(())):
            yield event


async def _held_while_answering(app: Front, model: LettingGo, gate: asyncio.Event) -> int:
    async with client(app) as caller:
        asking = asyncio.ensure_future(caller.post("/v1/ocr", content=b"x", headers={"content-type": "image/png"}))
        while not model.num_begun:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        gc.collect()
        num_alive = len(model.alive)
        gate.set()
        response: httpx.Response = await asking
        assert response.status_code == 200
        return num_alive


def test_pictures_are_let_go_once_the_worker_has_them() -> None:
    async def asking() -> int:
        gate = asyncio.Event()
        model = LettingGo(gate)
        return await _held_while_answering(front(model), model, gate)

    assert asyncio.run(asking()) == 0
