"""Raw sockets: every method on every route, and requests with bytes changed. None hangs, none is our fault."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable

import pytest

from tests.doubles.front import exchange, front, listening
from tests.doubles.model import PICTURE, ScriptedModel, answer
from tests.makers.http_requests import HEALTH, check_answers, http_requests, many_changed
from varco_serve.front.limits import FrontLimits

LIMITS = dataclasses.replace(FrontLimits(), header_s=0.1, body_s=0.1, linger_s=0.1, keep_alive_s=0)
"""Short, so that a request that lost its end is given up within the test."""
HANG_S = 30
TOGETHER = 80


async def _answered(port: int, request: bytes) -> bytes:
    try:
        return await asyncio.wait_for(exchange(port, request), HANG_S)
    except ConnectionError:
        return b""


async def _fuzz(make: Callable[[Iterable[str]], list[bytes]], limits: FrontLimits) -> tuple[list[bytes], list[bytes]]:
    """Send the requests that a function makes of the routes, many at a time, and return them and their answers."""
    model = ScriptedModel(answer("Hello", picture=PICTURE))
    app = front(model, limits, max_queue=1000)
    sent = make(app.paths)
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
    async with listening(app, limits) as port:
        answers: list[bytes] = []
        for start in range(0, len(sent), TOGETHER):
            group = sent[start : start + TOGETHER]
            answers += await asyncio.gather(*(_answered(port, request) for request in group))
        assert b" 200 OK" in await exchange(port, HEALTH)
    assert (app.num_running, model.num_running, failures) == (0, 0, [])
    return sent, answers


def test_every_method_on_every_route_is_answered() -> None:
    sent, answers = asyncio.run(
        _fuzz(lambda routes: [one.on_the_wire() for one in http_requests(routes)], FrontLimits())
    )
    check_answers(sent, answers)
    assert all(answers)


def test_requests_with_changed_bytes_are_answered_or_closed() -> None:
    check_answers(*asyncio.run(_fuzz(lambda routes: many_changed(routes, 20, 320), LIMITS)))


@pytest.mark.full
@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_requests_with_changed_bytes_are_answered_or_closed(seed: int) -> None:
    check_answers(*asyncio.run(_fuzz(lambda routes: many_changed(routes, seed, 4000), LIMITS)))


async def _half_open(num: int, seconds: float) -> None:
    async with listening(front(ScriptedModel())) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(num)]
        for index, (_, writer) in enumerate(held):
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"[: index % 50])
        loop = asyncio.get_running_loop()
        end_s = loop.time() + seconds
        num_asked = 0
        while num_asked < 20 or loop.time() < end_s:
            assert b" 200 OK" in await exchange(port, HEALTH)
            num_asked += 1
        for _, writer in held:
            writer.close()


def test_hundreds_of_half_open_connections_keep_nobody_out() -> None:
    asyncio.run(_half_open(400, 0))


@pytest.mark.full
def test_half_open_connections_for_longer_than_a_header_may_take_keep_nobody_out() -> None:
    asyncio.run(_half_open(450, 12))
