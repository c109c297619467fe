"""More than a server can take: ten times the load, and connections that never finish their header."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from benchmarks.load.client import Client
from benchmarks.load.figures import percentiles, summary
from benchmarks.load.loops import closed_loop, open_loop
from benchmarks.load.questions import Questions
from benchmarks.load.server import Server

MAX_REFUSAL_MS = 50.0
MAX_HEALTH_MS = 100.0
HALF_OPEN = 500


def ten_times(server: Server, seconds: float, tokens: int, seed: int) -> dict[str, Any]:
    """Measure what a server can take, then send ten times as much, and see how soon it refuses.

    Args:
        server: A server with a short queue.
        seconds: For how long.
        tokens: Tokens of each answer.
        seed: What questions and times are drawn from.
    """
    questions = Questions("text", seed, tokens)

    def body() -> bytes:
        return questions.next().body()

    capacity = summary(asyncio.run(closed_loop(server.host, server.port, body, 4, 40)))["answers_per_s"]
    found = summary(asyncio.run(open_loop(server.host, server.port, body, 10 * capacity, seconds, seed)))
    after = summary(asyncio.run(closed_loop(server.host, server.port, body, 1, 4)))
    return {
        "capacity_answers_per_s": capacity,
        "rate_per_s": round(10 * capacity, 2),
        **found,
        "limit_refusal_ms": MAX_REFUSAL_MS,
        "answers_afterwards": after["answers"],
        "restarts": server.restarts(),
    }


def half_open(server: Server, seconds: float, connections: int = HALF_OPEN) -> dict[str, Any]:
    """Hold connections open that never end their header, opened anew when the server closes them; ask for health.

    Args:
        server: A server.
        seconds: For how long.
        connections: How many are open at once.
    """
    return asyncio.run(_half_open(server, seconds, connections))


async def _half_open(server: Server, seconds: float, connections: int) -> dict[str, Any]:
    until_s = time.perf_counter() + seconds
    opened = 0

    async def linger() -> None:
        nonlocal opened
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(server.host, server.port)
                opened += 1
                try:
                    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
                    await reader.read()  # the server ends it, sooner or later
                finally:
                    writer.close()
            await asyncio.sleep(0.05)

    lingering = [asyncio.create_task(linger()) for _ in range(connections)]
    await asyncio.sleep(0.5)
    outcomes = []
    while time.perf_counter() < until_s:
        for path in ("/health/live", "/health/ready", "/health"):
            client = Client(server.host, server.port)
            begun_s = time.perf_counter()
            outcome = await client.get(path)
            outcome.started_s = begun_s  # with the time to connect
            outcomes.append(outcome)
            client.close()
        await asyncio.sleep(0.05)
    for task in lingering:
        task.cancel()
    await asyncio.gather(*lingering, return_exceptions=True)
    return {
        "connections": connections,
        "opened": opened,
        "seconds": seconds,
        "requests": len(outcomes),
        "failed": sum(not one.is_answer for one in outcomes),
        "health_ms": percentiles([one.total_s for one in outcomes]),
        "limit_health_ms": MAX_HEALTH_MS,
        "restarts": server.restarts(),
    }
