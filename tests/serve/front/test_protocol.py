"""Connections: late headers, too many of them, ambiguous requests, pipelining, clients that stall."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator

import pytest

from tests.doubles.front import exchange, front, listening
from tests.doubles.model import ScriptedModel, answer
from varco_serve.front.limits import FrontLimits
from varco_serve.messages import Begun, Said

HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
LAST = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
CHAT = b'{"model": "varco", "messages": [{"role": "user", "content": "Hello"}], "stream": %s}'


def post(body: bytes, fields: bytes = b"") -> bytes:
    """A chat request on the wire."""
    length = b"content-length: %d\r\n" % len(body)
    start = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return start + length + fields + b"\r\n" + body


@contextlib.asynccontextmanager
async def connected(port: int, data: bytes = b"") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        yield reader, writer
    finally:
        writer.close()


def limits(**changed: float) -> FrontLimits:
    return dataclasses.replace(FrontLimits(), **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nhost: local", HEALTH, HEALTH + b"GET /hea"])
def test_a_connection_whose_header_is_late_is_told_so_and_closed(sent: bytes) -> None:
    async def asking() -> bytes:
        bounds = limits(header_s=0.5, keep_alive_s=0.5)
        async with (
            listening(front(ScriptedModel()), bounds) as port,
            connected(port, sent[: len(HEALTH)]) as (reader, writer),
        ):
            received = b""
            if sent.startswith(HEALTH):
                received = await reader.readuntil(b"}")
                writer.write(sent[len(HEALTH) :])
            try:
                return received + await asyncio.wait_for(reader.read(), 20)
            except ConnectionError:
                return received

    received = asyncio.run(asking())
    assert received.count(b"HTTP/1.1 200 OK") == sent.count(HEALTH)
    is_begun = sent not in (b"", HEALTH)
    assert received.count(b"HTTP/1.1 408 Request Timeout") == is_begun
    assert received.count(b'"code": "slow_header"') == is_begun


def test_a_header_that_trickles_gets_no_more_time() -> None:
    async def asking() -> int:
        bounds = limits(header_s=0.1)
        async with listening(front(ScriptedModel()), bounds) as port, connected(port) as (reader, writer):
            closed = asyncio.ensure_future(reader.read())
            num_sent = 0
            while not closed.done():
                writer.write(b"G")
                num_sent += 1
                await asyncio.sleep(0.01)
            closed.exception()
            return num_sent

    assert asyncio.run(asking()) < 16_384


def test_of_too_many_connections_the_one_that_has_waited_longest_for_its_request_makes_room() -> None:
    async def asking() -> None:
        gate = asyncio.Event()
        model = ScriptedModel([gate, *answer("Hello")])
        async with contextlib.AsyncExitStack() as stack:
            port = await stack.enter_async_context(listening(front(model), limits(max_connections=4)))
            busy, _ = await stack.enter_async_context(connected(port, post(CHAT % b"false")))
            while not model.num_running:
                await asyncio.sleep(0.001)
            used, _ = await stack.enter_async_context(connected(port, HEALTH))
            await used.readuntil(b"}")
            fresh, _ = await stack.enter_async_context(connected(port))
            for _ in range(5):
                await stack.enter_async_context(connected(port))
                assert b"200 OK" in await exchange(port, LAST)
            for reader in (used, fresh):
                assert await reader.read() == b""
            gate.set()  # who is answered keeps the connection
            assert b"Hello" in await busy.readuntil(b"Hello")

    asyncio.run(asyncio.wait_for(asking(), 30))


def test_a_connection_that_has_been_used_waits_behind_those_that_came_before() -> None:
    async def asking() -> tuple[bytes, bytes]:
        async with contextlib.AsyncExitStack() as stack:
            port = await stack.enter_async_context(listening(front(ScriptedModel()), limits(max_connections=2)))
            used, writer = await stack.enter_async_context(connected(port))
            idle, _ = await stack.enter_async_context(connected(port))
            writer.write(HEALTH)
            await used.readuntil(b"}")
            await stack.enter_async_context(connected(port))
            closed = await idle.read()
            writer.write(HEALTH)
            return closed, await used.readuntil(b"}")

    closed, answered = asyncio.run(asyncio.wait_for(asking(), 30))
    assert closed == b""
    assert b"200 OK" in answered


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: a\r\nhost: localhost\r\n\r\n",
        b"GET /health HTTP/2.0\r\nhost: localhost\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 33_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 33_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        post(b"{}", b"transfer-encoding: chunked\r\n"),
        post(b"{}", b"transfer-encoding: gzip, chunked\r\n"),
        post(b"{}", b"content-length: 3\r\n"),
        b"POST /v1/ocr HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/ocr HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
def test_what_is_no_http_or_is_ambiguous_is_refused_in_one_envelope_and_closed(request_bytes: bytes) -> None:
    async def asking() -> tuple[bytes, bytes]:
        async with listening(front(ScriptedModel())) as port:
            return await exchange(port, request_bytes), await exchange(port, LAST)

    refused, health = asyncio.run(asking())
    assert refused.startswith(b"HTTP/1.1 400 ")
    assert b'"code": "invalid_http"' in refused
    assert b"200 OK" in health


@pytest.mark.parametrize(
    ("request_bytes", "fault"),
    [
        (LAST[:-2] + b"x: " + b"a" * 40_000 + b"\r\n\r\n", b"header has more than 32,768 bytes"),
        (LAST[:-2] + b"x: " + b"a" * 40_000, b"header has more than 32,768 bytes"),
        (LAST[:-2] + b"x: " + b"a" * 32_740 + b"\r\n\r\n", b"header has more than 32,768 bytes"),
        (LAST[:-2] + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", b"both Content-Length and"),
        (b"\x16\x03\x01", b"This is no valid HTTP/1.1 request."),
    ],
)
def test_a_refused_request_is_told_what_is_wrong_with_it(request_bytes: bytes, fault: bytes) -> None:
    async def asking() -> bytes:
        async with listening(front(ScriptedModel())) as port:
            return await exchange(port, request_bytes)

    received = asyncio.run(asking())
    assert received.startswith(b"HTTP/1.1 400 ")
    assert fault in received


def test_bytes_behind_a_request_that_is_answered_are_dropped_and_the_connection_closed() -> None:
    async def asking() -> bytes:
        async with listening(front(ScriptedModel())) as port:
            return await exchange(port, post(CHAT % b"false") + HEALTH)

    received = asyncio.run(asking())
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"Hello there" in received


def test_requests_one_after_the_other_share_a_connection() -> None:
    async def asking() -> None:
        async with listening(front(ScriptedModel())) as port, connected(port) as (reader, writer):
            for _ in range(3):
                writer.write(HEALTH)
                assert b"200 OK" in await reader.readuntil(b"}")
                writer.write(post(CHAT % b"true"))
                assert b"[DONE]" in await reader.readuntil(b"0\r\n\r\n")

    asyncio.run(asking())


@pytest.mark.parametrize("behind", [b"", HEALTH])
@pytest.mark.parametrize("fields", [b"", b"connection: upgrade\r\nupgrade: h2c\r\n", b"connection: close\r\n"])
@pytest.mark.parametrize("stream", [b"true", b"false"])
def test_a_client_that_leaves_ends_its_answer(stream: bytes, fields: bytes, behind: bytes) -> None:
    async def asking() -> None:
        model = ScriptedModel([Begun(7), Said("a", "a"), asyncio.Event()])
        app = front(model)
        async with listening(app) as port:
            async with connected(port, post(CHAT % stream, fields) + behind) as (reader, _):
                if stream == b"true":
                    await reader.readuntil(b'"a"')
                while not model.num_running:
                    await asyncio.sleep(0.001)
            while app.num_running:
                await asyncio.sleep(0.001)
            assert (model.num_running, model.num_cancelled) == (0, 1)

    asyncio.run(asyncio.wait_for(asking(), 30))


def test_a_client_that_does_not_read_its_answer_is_given_up() -> None:
    async def asking() -> None:
        model = ScriptedModel([Begun(7), *[Said("a" * 100_000, "")] * 1000])
        app = front(model)
        async with listening(app, limits(stalled_write_s=0.05)) as port:
            async with connected(port, post(CHAT % b"true")) as (_, writer):
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                while model.num_cancelled == 0:
                    await asyncio.sleep(0.01)
            assert model.num_running == 0

    asyncio.run(asyncio.wait_for(asking(), 30))


def test_the_rest_of_a_refused_body_is_read_for_a_while_so_that_its_sender_sees_the_answer() -> None:
    async def asking(bounds: FrontLimits) -> tuple[bytes, bool]:
        app = front(ScriptedModel(answer("x")))
        async with listening(app, bounds) as port, connected(port) as (reader, writer):
            writer.write(b"POST /unknown HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10000000\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            try:
                for _ in range(100):
                    writer.write(b"a" * 100_000)
                    await writer.drain()
                    await asyncio.sleep(0.002)
                writer.write(LAST)
                return head, b"200 OK" in await reader.read()
            except ConnectionError:
                return head, False

    head, is_reused = asyncio.run(asking(limits(linger_s=20)))
    assert head.startswith(b"HTTP/1.1 404 ")
    assert is_reused
    head, is_reused = asyncio.run(asking(limits(linger_s=0.01)))
    assert head.startswith(b"HTTP/1.1 404 ")
    assert not is_reused
