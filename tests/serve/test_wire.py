"""Frames between processes: what goes in comes out, bounds hold, and what is no frame is an error."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from varco_serve import wire

HEADERS: list[dict[str, Any]] = [{}, {"id": 1}, {"text": "한국어\ud800\n\x00", "deep": [[[{"a": [1.5, None, True]}]]]}]
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(60)
        theirs.settimeout(60)
        yield ours, theirs


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("parts", [[], [b""], [b"abc", b"", bytes(300_000)]])
def test_a_frame_comes_out_as_it_went_in(pair: Pair, header: dict[str, Any], parts: list[bytes]) -> None:
    ours, theirs = pair
    sending = threading.Thread(target=wire.send, args=(ours, header, *parts))
    sending.start()
    assert wire.receive(theirs) == (header, b"".join(parts))
    sending.join()


def test_event_loops_and_threads_read_each_other(pair: Pair) -> None:
    ours, theirs = pair
    body = bytes(range(256)) * 5000

    def echo() -> None:
        header, data = wire.receive(theirs)
        wire.send(theirs, header, data)

    async def ask() -> tuple[dict[str, Any], bytes]:
        ours.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours)
        await wire.send_async(writer, HEADERS[2], body, b"end")
        got = await wire.receive_async(reader)
        writer.close()
        return got

    thread = threading.Thread(target=echo)
    thread.start()
    assert asyncio.run(ask()) == (HEADERS[2], body + b"end")
    thread.join()


NO_FRAMES = [
    b"",
    b"abc",
    struct.pack(">II", 10, 0) + b"{}",
    struct.pack(">II", 2, 9) + b"{}" + b"short",
    struct.pack(">II", 2, 0) + b"{[",
    struct.pack(">II", 2, 0) + b"[]",
    struct.pack(">II", 2, 0) + b"\xff\xfe",
    struct.pack(">II", wire.MAX_HEADER_BYTES + 1, 0),
    struct.pack(">II", 2, wire.MAX_BODY_BYTES + 1),
]


@pytest.mark.parametrize("data", NO_FRAMES, ids=repr)
def test_what_is_no_frame_is_an_error(pair: Pair, data: bytes) -> None:
    ours, theirs = pair
    ours.sendall(data)
    ours.close()
    with pytest.raises(wire.WireError):
        wire.receive(theirs)


@pytest.mark.parametrize("data", NO_FRAMES, ids=repr)
def test_what_is_no_frame_is_an_error_in_an_event_loop(data: bytes) -> None:
    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        await wire.receive_async(reader)

    with pytest.raises(wire.WireError):
        asyncio.run(read())


def test_nothing_of_a_frame_that_is_too_large_is_sent(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair
    monkeypatch.setattr(wire, "MAX_BODY_BYTES", 10)
    with pytest.raises(wire.TooLargeError):
        wire.send(ours, {}, bytes(6), bytes(5))
    wire.send(ours, {"id": 2}, bytes(10))
    assert wire.receive(theirs) == ({"id": 2}, bytes(10))


def test_numbers_that_json_does_not_know_are_not_sent(pair: Pair) -> None:
    with pytest.raises(ValueError, match="JSON"):
        wire.send(pair[0], {"logprob": float("nan")})


def test_nobody_reads_any_more(pair: Pair) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(wire.WireError):
        wire.send(ours, {}, bytes(1 << 20))
