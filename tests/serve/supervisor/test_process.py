"""A child process: how it is started, what it inherits, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from varco_serve import wire
from varco_serve.supervisor import process as module
from varco_serve.supervisor.process import Process

CHILD = """
import os, signal, socket, sys, time
from varco_serve import wire
connection = socket.socket(fileno=int(sys.argv[1]))
while True:
    try:
        header, body = wire.receive(connection)
    except wire.WireError:
        sys.exit(0)
    if header.get("sleep"):
        time.sleep(600)
    if header.get("print"):
        print(header["print"], flush=True)
        print(header["print"] + " too", file=sys.stderr, flush=True)
    if header.get("open"):
        header["open"] = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    wire.send(connection, header, *[body] * bool(body))
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Awaitable[Process]]:
    """Starts a child that sends everything back."""
    (tmp_path / "varco_test_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    async def started(lines: list[str]) -> Process:
        return await Process.start("varco_test_child", lines.append)

    return started


Start = Callable[[list[str]], Awaitable[Process]]


def test_frames_go_there_and_back_and_lines_come_out(start: Start) -> None:
    async def test() -> None:
        lines: list[str] = []
        child = await start(lines)
        await asyncio.gather(*(child.send({"n": number}, bytes(100_000)) for number in range(20)))
        got = [await child.receive() for _ in range(20)]
        assert sorted(header["n"] for header, _ in got) == list(range(20))  # whole frames, none mixed with another
        assert all(body == bytes(100_000) for _, body in got)
        await child.send({"print": "x" * 5000})
        await child.receive()
        assert await child.end() == 0
        assert [len(line) for line in lines] == [1000, 1000]

    asyncio.run(test())


def test_the_status_of_one_that_died_is_its_own(start: Start) -> None:
    """Whoever kills what has died already may take its status away."""

    async def test() -> None:
        for _ in range(5):
            child = await start([])
            os.kill(child.pid, signal.SIGKILL)
            with pytest.raises(wire.WireError):
                await child.receive()
            assert await child.end() == -signal.SIGKILL

    asyncio.run(test())


def test_one_that_does_not_look_at_its_socket_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_END_S", 0.05)

    async def test() -> None:
        child = await start([])
        await child.send({"echo": 1})
        await child.receive()
        await child.send({"sleep": True})
        assert await child.end() == -signal.SIGKILL
        with pytest.raises(wire.WireError):
            await child.send({}, bytes(1 << 20))
        child.kill()  # is no error

    asyncio.run(test())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not list open files")
def test_it_inherits_its_socket_and_nothing_else(start: Start) -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            os.set_inheritable(listening.fileno(), False)
            child = await start([])
            await child.send({"open": True})
            header, _ = await child.receive()
            # Standard streams, its socket, and the folder that it reads.
            assert len(header["open"]) == 5
            assert header["open"][:3] == [0, 1, 2]
            await child.end()

    asyncio.run(test())


def test_no_descriptor_is_left_of_many(start: Start) -> None:
    async def test() -> None:
        async def one() -> None:
            child = await start([])
            await child.send({})
            await child.receive()
            await child.end()

        await one()
        before = _num_descriptors()
        for _ in range(4):
            await one()
        await asyncio.sleep(0)
        assert _num_descriptors() <= before + 1  # one that is being closed

    asyncio.run(test())


def _num_descriptors() -> int:
    return sum(_is_open(number) for number in range(256))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_where_none_can_be_started_nothing_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(sys, "executable", "/missing/python")
        before = _num_descriptors()
        for _ in range(3):
            with pytest.raises(OSError, match="missing"):
                await Process.start("varco_test_child", print)
        assert _num_descriptors() == before

    asyncio.run(test())
