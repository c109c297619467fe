"""What a server keeps: its slots from the start, and after thousands of mixed requests little more."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.makers.callers import leave_plain, leave_stream
from tests.makers.server import RunningServer, until
from varco_runtime.generation.prefix_cache import DEFAULT_MEMORY_MB

MANY = [60, pytest.param(2000, marks=pytest.mark.full)]
MAX_GROWTH_BYTES = 100 << 20
"""Of all processes together, apart from what is kept of earlier pictures, which has a limit of its own."""
CALLERS = 6


@pytest.fixture(scope="module")
def own_server() -> Iterator[RunningServer]:
    with RunningServer("--slots", "4", "--threads", "1") as server:
        yield server


def picture(index: int) -> bytes:
    """A picture that is like no other, sometimes a damaged one."""
    random = np.random.default_rng(index)
    array = random.integers(0, 256, (int(random.integers(1, 400)), int(random.integers(1, 400)), 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(array).save(file, ("PNG", "JPEG", "WEBP", "BMP", "GIF")[index % 5])
    data = file.getvalue()
    return data[: len(data) // 2] if index % 7 == 0 else data


def shown(index: int) -> list[dict[str, Any]]:
    url = f"data:image/png;base64,{base64.b64encode(picture(index)).decode()}"
    return [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORM = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
KINDS: list[Callable[[RunningServer, int], httpx.Response | None]] = [
    lambda server, index: server.chat(f"Hi {index}", max_tokens=8),
    lambda server, index: server.chat(shown(index), max_tokens=8),
    lambda server, index: server.chat(shown(1), max_tokens=8, logprobs=True, top_logprobs=20),
    lambda server, index: server.client.post("/v1/ocr", content=picture(index), headers={"content-type": "image/png"}),
    lambda server, index: server.chat("Hi", n=4, max_tokens=4, seed=index, temperature=1.0),
    lambda server, index: server.chat("Hi", max_tokens=30, response_format=FORM),
    lambda server, index: server.chat("x " * 4000),
    lambda server, index: server.chat("Hi", temperature=-1),
    lambda server, index: leave_stream(server, {"messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True}),
    lambda server, index: leave_plain(server, {"messages": [{"role": "user", "content": shown(index)}]}, wait=False),
]


@pytest.mark.parametrize("number", MANY)
def test_mixed_requests_leave_little_behind(own_server: RunningServer, number: int) -> None:
    def resident() -> int:
        pids = (own_server.pid, own_server.worker_pid, own_server.pictures_pid)
        return sum(psutil.Process(pid).memory_info().rss for pid in pids)

    def ask(index: int) -> int:
        answer = KINDS[index % len(KINDS)](own_server, index)
        return 0 if answer is None else answer.status_code

    with ThreadPoolExecutor(CALLERS) as pool:
        assert set(pool.map(ask, range(2 * len(KINDS)))) <= {0, 200, 400}  # whatever is loaded at its first use
        before = resident()
        statuses = list(pool.map(ask, range(number)))
    assert set(statuses) == {0, 200, 400}
    until(lambda: own_server.metric("varco_answers_running") + own_server.metric("varco_answers_waiting") == 0)
    kept = own_server.metric("varco_picture_cache_bytes")
    assert kept <= DEFAULT_MEMORY_MB << 20
    assert resident() - before - kept < MAX_GROWTH_BYTES
    assert own_server.metric("varco_restarts_total") == 0


@pytest.mark.full
def test_slots_have_their_memory_before_the_first_question() -> None:
    """Answers that fill all slots take what they compute with, and no further page for keys and values."""
    with RunningServer("--slots", "16", "--threads", "1") as server, ThreadPoolExecutor(16) as pool:
        cache_bytes = server.client.get("/v1/metadata").json()["cache_bytes"]
        worker = psutil.Process(server.worker_pid)
        before = worker.memory_info().rss
        asked = [pool.submit(server.chat, "Hi", ignore_eos=True, max_tokens=32768) for _ in range(16)]
        assert {one.result().status_code for one in asked} == {200}
        assert server.metric("varco_kv_tokens") > 16 * 900
        assert worker.memory_info().rss - before < cache_bytes // 2
