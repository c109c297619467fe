"""A request's body: its size, its pace, and all of them together."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator

import pytest

from tests.doubles.front import client, exchange, front, listening
from tests.doubles.model import ScriptedModel
from varco_serve.documents.errors import RequestError
from varco_serve.front.body import Budget
from varco_serve.front.limits import FrontLimits

CHAT = json.dumps({"model": "varco", "messages": [{"role": "user", "content": "Hello"}]}).encode()
HEADER = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
UNREAD = (("GET", "/health"), ("POST", "/nothing"), ("POST", "/health"))
SMALL = dataclasses.replace(FrontLimits(), max_body_bytes=1 << 20)


def post(*pieces: bytes, limits: FrontLimits = SMALL, length: int | None = None) -> tuple[int, str]:
    """Return status and error code of a request whose body comes in pieces, with or without a length said before."""

    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def asking() -> tuple[int, str]:
        headers = {"content-type": "application/json"} | ({} if length is None else {"content-length": str(length)})
        app = front(ScriptedModel(), limits)
        async with client(app) as caller:
            answer = await caller.post("/v1/chat/completions", content=body(), headers=headers)
        return answer.status_code, (answer.json().get("error") or {}).get("code", "")

    return asyncio.run(asking())


def test_a_body_that_is_too_long_is_refused_by_its_length_and_by_its_bytes() -> None:
    assert post(CHAT, length=(1 << 20) + 1) == (413, "request_too_large")
    assert post(*[b" " * 65_536] * 17) == (413, "request_too_large")
    assert post(CHAT, b" " * 65_536) == (200, "")


def test_a_body_that_nobody_reads_is_not_held_against_its_request() -> None:
    async def asking() -> list[int]:
        headers = {"content-length": str(1 << 40)}
        async with client(front(ScriptedModel(), SMALL)) as caller:
            found = [await caller.request(method, path, headers=headers) for method, path in UNREAD]
            return [response.status_code for response in found]

    assert asyncio.run(asking()) == [200, 404, 405]


def test_the_bound_is_32_mib() -> None:
    assert post(CHAT, limits=FrontLimits(), length=(32 << 20) + 1) == (413, "request_too_large")
    assert post(CHAT, limits=FrontLimits(), length=32 << 20) == (200, "")


def test_bytes_of_all_requests_together_are_bounded_and_given_back() -> None:
    budget = Budget(100)
    with budget.share() as first:
        first.take(60)
        with budget.share() as second:
            second.take(30)
            with pytest.raises(RequestError) as refused:
                second.take(30)
        assert refused.value.status == 503
        assert budget.held_bytes == 60
    assert budget.held_bytes == 0
    assert post(CHAT, limits=dataclasses.replace(SMALL, max_held_bytes=10)) == (503, "overloaded")


def test_a_slow_body_is_refused_by_the_server_s_clock() -> None:
    async def asking() -> bytes:
        limits = dataclasses.replace(SMALL, body_s=0.05)
        async with listening(front(ScriptedModel(), limits), limits) as port:
            return await exchange(port, HEADER + b"connection: close\r\ncontent-length: 100\r\n\r\n{")

    answer = asyncio.run(asking())
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"slow_body" in answer


async def _chunked(port: int, chunks: list[bytes]) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEADER + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n")
    try:
        for start in range(0, len(chunks), 1000):
            data = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks[start : start + 1000])
            writer.write(data)
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        return await reader.read()
    except ConnectionError:
        return await reader.read()
    finally:
        writer.close()


def test_a_body_in_thousands_of_small_chunks_is_read() -> None:
    async def asking() -> bytes:
        async with listening(front(ScriptedModel())) as port:
            return await _chunked(port, [CHAT[index : index + 1] for index in range(len(CHAT))] + [b" "] * 1800)

    assert asyncio.run(asking()).startswith(b"HTTP/1.1 200 ")


def test_a_million_one_byte_chunks_are_refused_and_the_server_goes_on() -> None:
    async def asking() -> tuple[bytes, bytes]:
        async with listening(front(ScriptedModel())) as port:
            refused = await _chunked(port, [b" "] * 1_000_000)
            return refused, await exchange(port, HEALTH)

    refused, health = asyncio.run(asking())
    assert refused.startswith(b"HTTP/1.1 400 ")
    assert health.startswith(b"HTTP/1.1 200 ")
