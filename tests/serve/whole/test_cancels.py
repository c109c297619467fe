"""Callers that leave, many of them: every slot is free again, and no process grows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.makers.callers import disconnected, leave_plain, leave_stream
from tests.makers.server import RunningServer, until

MANY = [50, pytest.param(1000, marks=pytest.mark.full)]
WARM_UP = 25
MAX_GROWTH_BYTES = 8 << 20
"""Of one process; 8 kB that are lost with each of 1,000 callers are too many."""


@pytest.fixture(scope="module")
def own_server() -> Iterator[RunningServer]:
    with RunningServer("--slots", "2", "--threads", "1") as server:
        yield server


def endless(index: int) -> dict[str, Any]:
    """A question, another one each time, whose answer goes on until the context is full."""
    return {"messages": [{"role": "user", "content": f"Number {index % 10}?"}], "ignore_eos": True, "max_tokens": 32768}


def leave(server: RunningServer, streamed: bool, index: int) -> None:
    before = disconnected(server)
    if streamed:
        leave_stream(server, endless(index))
    else:
        leave_plain(server, endless(index), wait=index % 3 > 0)
    until(lambda: disconnected(server) == before + 1)  # seen as a caller that left, not as an answer that ended
    until(lambda: server.metric("varco_answers_running") + server.metric("varco_answers_waiting") == 0)


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "plain"])
@pytest.mark.parametrize("number", MANY)
def test_slots_are_free_and_memory_is_flat(own_server: RunningServer, number: int, streamed: bool) -> None:
    processes = [psutil.Process(pid) for pid in (own_server.pid, own_server.worker_pid, own_server.pictures_pid)]
    for index in range(WARM_UP):
        leave(own_server, streamed, index)
    before = [process.memory_info().rss for process in processes]
    for index in range(number):
        leave(own_server, streamed, index)
    growth = [process.memory_info().rss - rss for process, rss in zip(processes, before, strict=True)]
    assert max(growth) < MAX_GROWTH_BYTES, growth
    for _ in range(2):  # both slots still answer
        answer = own_server.chat("Hi", max_tokens=3, ignore_eos=True)
        assert answer.json()["usage"]["completion_tokens"] == 3
    assert own_server.metric("varco_restarts_total") == 0
