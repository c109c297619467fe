"""The load client reads answers however they are cut, figures are what they are called, and a leak is found out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load.client import Client, Events, Outcome
from benchmarks.load.figures import gaps, percentiles, summary
from benchmarks.load.loops import closed_loop, open_loop
from benchmarks.load.questions import KINDS, Questions
from benchmarks.load.report import faults_of
from benchmarks.load.server import Server
from benchmarks.load.soak import LEAKING, Sample, complaints, growth_bytes, soaked
from benchmarks.serve import DEMO, main
from varco_runtime.picture.loading import load_picture

STREAM = b"".join(
    b"data: " + (json.dumps(document).encode() if isinstance(document, dict) else document) + b"\n\n"
    for document in (
        {"choices": [{"delta": {"role": "assistant"}}]},
        {"choices": [{"delta": {"content": "서"}}]},
        {"choices": [{"delta": {"content": "울"}, "finish_reason": "length"}]},
        {"choices": [], "usage": {"completion_tokens": 7}},
        b"[DONE]",
    )
)
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def against(serve: Serve, ask: Callable[[str, int], Awaitable[Any]]) -> Any:
    """Return what `ask` does, against a server that answers as `serve` does."""

    async def run() -> Any:
        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await serve(reader, writer)
            except (OSError, EOFError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(one, "127.0.0.1", 0)
        async with server, asyncio.timeout(60):
            return await ask(*server.sockets[0].getsockname())

    return asyncio.run(run())


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    return await reader.readexactly(length)


@pytest.mark.parametrize("size", [1, 2, 7, 40, 10_000])
def test_a_stream_is_read_however_it_is_cut(size: int) -> None:
    outcome = Outcome(status=200)
    events = Events(outcome)
    for start in range(0, len(STREAM), size):
        events.take(STREAM[start : start + size])
    events.end()
    assert (outcome.text, outcome.num_tokens, outcome.finish_reason) == ("서울", 7, "length")
    assert len(outcome.pieces_s) == 2
    assert outcome.is_answer


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (STREAM[: STREAM.index(b"data: [DONE]")], "the stream ends without [DONE]"),
        (STREAM[:-1], "the stream ends in the middle of an event"),
        (b'data: {"error": {"message": "lost"}}\n\n', "lost"),
    ],
)
def test_a_stream_that_ends_early_is_no_answer(stream: bytes, fault: str) -> None:
    outcome = Outcome(status=200)
    events = Events(outcome)
    events.take(stream)
    events.end()
    assert outcome.fault == fault
    assert not outcome.is_answer


def test_one_connection_serves_several_requests_streamed_and_whole() -> None:
    connections = 0
    whole = json.dumps(
        {"choices": [{"message": {"content": "Seoul"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}
    )

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            if b"stream" in await read_request(reader):
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                for start in range(0, len(STREAM), 50):
                    part = STREAM[start : start + 50]
                    writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                writer.write(b"0\r\n\r\n")
            else:
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(whole)}\r\n\r\n"
                writer.write(head.encode() + whole.encode())
            await writer.drain()

    async def ask(host: str, port: int) -> list[Outcome]:
        client = Client(host, port)
        found = [await client.post("/", body) for body in (b"stream", b"whole", b"stream")]
        client.close()
        return found

    outcomes = against(serve, ask)
    assert [one.text for one in outcomes] == ["서울", "Seoul", "서울"]
    assert [one.num_tokens for one in outcomes] == [7, 2, 7]
    assert all(one.is_answer and one.started_s <= one.pieces_s[0] <= one.ended_s for one in outcomes)
    assert connections == 1


def test_a_connection_that_breaks_is_a_fault_and_the_next_request_opens_another() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await read_request(reader) != b"break":
            writer.write(
                b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 5\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
            )
            await writer.drain()

    async def ask(host: str, port: int) -> list[Outcome]:
        client = Client(host, port)
        return [await client.post("/", body) for body in (b"break", b"full", b"full")]

    broken, *refused = against(serve, ask)
    assert broken.status == 0
    assert broken.fault is not None
    assert [(one.status, one.retry_after, one.fault) for one in refused] == [(429, "5", None)] * 2


def test_loops_make_the_requests_that_they_are_asked_for() -> None:
    numbers = iter(range(1000))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()

    def body() -> bytes:
        return str(next(numbers)).encode()

    closed = against(serve, lambda host, port: closed_loop(host, port, body, num_callers=4, num_requests=10))
    assert len(closed) == 10
    opened = against(serve, lambda host, port: open_loop(host, port, body, rate=200, seconds=0.1, seed=3))
    assert len(opened) == len(against(serve, lambda host, port: open_loop(host, port, body, 200, 0.1, 3))) > 5
    assert {one.status for one in (*closed, *opened)} == {200}


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentiles([]) is None
    assert percentiles([0.001 * at for at in range(1, 101)]) == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
    assert percentiles([2.0, 1.0], scale=1) == {"p50": 1.0, "p90": 2.0, "p99": 2.0, "max": 2.0}


def test_a_summary_counts_answers_alone_and_times_refusals_apart() -> None:
    answer = Outcome(200, 0.0, [1.0, 1.5, 3.0], 4.0, 9)
    refusal = Outcome(429, 1.0, [1.01], 1.01)
    broken = Outcome(200, 1.0, [2.0], 2.0, 5, fault="lost")
    found = summary([answer, refusal, broken])
    assert gaps(answer) == [0.5, 1.5]
    assert answer.tpot_s == 0.25
    assert (found["requests"], found["answers"], found["tokens_per_s"]) == (3, 1, 2.25)
    assert found["statuses"] == {"200": 2, "429": 1}
    assert found["faults"] == {"lost": 1}
    assert found["ttft_ms"]["max"] == 1000
    assert found["refusal_ms"]["max"] == 10


@pytest.mark.parametrize("kind", KINDS)
def test_questions_are_drawn_from_their_seed_and_repeat_what_they_say(kind: str) -> None:
    def drawn(seed: int) -> list[tuple[str, bytes | None]]:
        questions = Questions(kind, seed, 8)
        return [(question.prompt, question.picture) for question in (questions.next() for _ in range(12))]

    first = drawn(1)
    assert first == drawn(1) != drawn(2)
    assert len({prompt for prompt, _ in first}) == 12
    pictures = [picture for _, picture in first if picture is not None]
    assert len(set(pictures)) == {"text": 0, "new picture": 12, "repeated picture": 4}[kind]
    assert all(load_picture(picture).size_hw == (448, 448) for picture in pictures[:2])


def samples(front: list[float], descriptors: int = 0) -> list[Sample]:
    return [
        Sample(at, {"front": int(megabytes * 1e6), "worker": 100}, {"front": 10 + descriptors * (at > 15)})
        for at, megabytes in enumerate(front)
    ]


def test_memory_that_stays_or_grows_in_the_warm_up_alone_is_no_complaint() -> None:
    assert complaints(samples([40.0] * 20)) == []
    assert complaints(samples([40.0, 60, 90, 160, 190] + [200.0] * 15)) == []
    assert growth_bytes(samples([40.0] * 20)) == {"front": 0, "worker": 0}


def test_memory_that_grows_on_is_a_complaint_and_so_are_files_left_open() -> None:
    leaking = samples([40.0 + 8 * at for at in range(20)])
    (complaint,) = complaints(leaking)
    assert complaint.startswith("the front grew by ")
    assert complaints(samples([40.0] * 20, descriptors=20)) == [
        "the front has 20 more open files than after the warm-up"
    ]
    assert complaints(samples([40.0] * 5)) == ["only 5 samples, expected at least 8: soak for longer"]


def test_a_control_that_passes_is_a_fault() -> None:
    soaked = {"faults": [], "control": {"faults": ["the front grew by 90.0 MB, expected at most 50"]}}
    assert faults_of({"soak": soaked}) == []
    assert faults_of({"soak": {**soaked, "control": {"faults": ["2 restarts"]}}}) == [
        "soak: the server that leaks was not found out"
    ]


def test_answers_that_fail_are_faults_wherever_they_were_measured() -> None:
    bad = {"requests": 4, "answers": 3, "statuses": {"200": 3, "500": 1}, "faults": {}}
    report = {
        "alone": {"text": {"faults": ["500"]}, "limit_more_ttft_ms": 10},
        "callers": [{"callers": 8, "server": bad}],
        "overload": {"statuses": {"200": 3, "429": 9, "503": 1}, "answers_afterwards": 3, "restarts": 1},
        "half-open": {"failed": 2},
        "restarts": 1,
    }
    assert faults_of(report) == [
        "alone, text: 500",
        "8 callers: 1 of 4 were not answered: {'200': 3, '500': 1} {}",
        "overload: 1 answers of status 503",
        "overload: not every question afterwards was answered",
        "overload: a process was started again",
        "half-open: 2 health requests failed",
        "under load 1 processes were started again",
    ]


@pytest.mark.full
def test_a_server_that_leaks_is_found_out(tmp_path: Path) -> None:
    with Server(DEMO, tmp_path / "log", "--slots", "2", "--threads", "1", program=LEAKING) as server:
        found = soaked(server, seconds=40, tokens=4, seed=1)
    assert [fault for fault in found["faults"] if "the front grew by" in fault]


@pytest.mark.full
def test_the_benchmark_runs_and_writes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--quick",
        "--threads",
        "1",
        "--parts",
        "alone",
        "overload",
        "half-open",
        "--out",
        str(tmp_path / "a.json"),
    ]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "a.json").read_text())
    assert report == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["faults"] == []
    assert report["alone"]["text"]["equal_answers"] == report["alone"]["text"]["of"]
    assert report["overload"]["refusal_ms"] is not None
