"""Callers: a closed loop asks again when it is answered, an open one when its time has come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

from benchmarks.load.client import Client, Outcome

Body = Callable[[], bytes]
CHAT = "/v1/chat/completions"


async def closed_loop(host: str, port: int, body: Body, num_callers: int, num_requests: int) -> list[Outcome]:
    """Let callers ask one question after the other, and return what became of all.

    Args:
        host: The server's address.
        port: Its port.
        body: Makes the next request's body.
        num_callers: Callers at once, each with a connection of its own.
        num_requests: Requests of all callers together.
    """
    left = num_requests
    outcomes: list[Outcome] = []

    async def call() -> None:
        nonlocal left
        client = Client(host, port)
        while left > 0:
            left -= 1
            outcomes.append(await client.post(CHAT, body()))
        client.close()

    await asyncio.gather(*(call() for _ in range(num_callers)))
    return outcomes


async def open_loop(host: str, port: int, body: Body, rate: float, seconds: float, seed: int) -> list[Outcome]:
    """Send requests at random times, whether earlier ones are answered or not, each over a new connection.

    Args:
        host: The server's address.
        port: Its port.
        body: Makes the next request's body.
        rate: Requests a second, on average; the times between them are exponential.
        seconds: For how long.
        seed: What the times are drawn from.
    """
    random = np.random.default_rng(seed)
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    at_s = 0.0
    running: list[asyncio.Task[Outcome]] = []

    async def call(data: bytes) -> Outcome:
        client = Client(host, port)
        try:
            return await client.post(CHAT, data)
        finally:
            client.close()

    while (at_s := at_s + float(random.exponential(1 / rate))) < seconds:
        data = body()
        await asyncio.sleep(max(0.0, begun_s + at_s - loop.time()))
        running.append(asyncio.create_task(call(data)))
    return list(await asyncio.gather(*running))
