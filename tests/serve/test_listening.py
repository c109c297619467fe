"""The socket that the server listens on."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from varco_runtime.errors import UsageError
from varco_serve.serve import _listening
from varco_serve.settings import ServeSettings


def test_small_writes_are_sent_at_once() -> None:
    """With Nagle's algorithm the first token would wait for the acknowledgement of the headers, 40 ms on Linux."""

    async def test() -> list[int]:
        found: list[int] = []

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with _listening(ServeSettings(Path("bundle"), port=0)) as listening:
            server = await asyncio.start_server(accept, sock=listening)
            async with server:
                reader, writer = await asyncio.open_connection(*listening.getsockname())
                await reader.read()
                writer.close()
        return found

    (is_set,) = asyncio.run(test())
    assert is_set


def test_a_port_that_is_taken_is_one_line() -> None:
    with (
        _listening(ServeSettings(Path("bundle"), port=0)) as taken,
        pytest.raises(UsageError, match=r"^Port \d+ of 127\.0\.0\.1 cannot be had: .*\. Choose another --port\.$"),
    ):
        _listening(ServeSettings(Path("bundle"), port=taken.getsockname()[1]))
