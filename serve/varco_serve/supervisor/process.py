"""One child process and the frames between it and the front."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable
from typing import Any

from varco_serve import wire

_MAX_LINE_CHARS = 1000
_END_S = 0.5
"""How long a child may take to see that its socket was closed; one in the midst of a step does not look at it."""


class Process:
    """A child that runs a module of ours at the other end of a socket pair. `start` makes one.

    Attributes:
        pid: Its number.
        reader: What it sends.
        writer: What it is sent.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_line: Callable[[str], None],
    ) -> None:
        self._process = process
        self.reader = reader
        self.writer = writer
        self._sending = asyncio.Lock()
        self._lines = asyncio.create_task(self._read_lines(on_line))
        self.pid = process.pid

    @classmethod
    async def start(cls, module: str, on_line: Callable[[str], None]) -> Process:
        """Start one.

        Args:
            module: What it runs, `python -m`.
            on_line: Takes each line that it writes to its standard streams.

        Raises:
            OSError: There are no file descriptors, processes or memory left.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # no module of the folder that the server happens to be started in
                    "-m",
                    module,
                    str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                )
            try:
                reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
            except BaseException:
                process.kill()
                raise
        except BaseException:
            ours.close()
            raise
        return cls(process, reader, writer, on_line)

    async def send(self, header: dict[str, Any], *parts: bytes) -> None:
        """Send one frame.

        Raises:
            WireError: The process has ended.
        """
        async with self._sending:
            await wire.send_async(self.writer, header, *parts)

    async def receive(self) -> tuple[dict[str, Any], bytes]:
        """Receive the next frame; one task at a time.

        Raises:
            WireError: The process has ended, or sent what is no frame.
        """
        return await wire.receive_async(self.reader)

    def kill(self) -> None:
        """End it at once; nothing where it has ended already."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> int:
        """Wait until it has ended, and return its status."""
        return await self._process.wait()

    async def end(self) -> int:
        """Close its socket, of which it ends by itself, kill it where it does not, and return its status."""
        self.writer.close()
        try:  # one that has died is not to be killed: asyncio would lose its status
            async with asyncio.timeout(_END_S):
                status = await self._process.wait()
        except TimeoutError:
            self.kill()
            status = await self._process.wait()
        self._lines.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._lines
        return status

    async def _read_lines(self, on_line: Callable[[str], None]) -> None:
        stream = self._process.stdout
        assert stream is not None, "Bug: a child without standard output"
        pending = b""
        while data := await stream.read(1 << 16):
            *lines, pending = (pending + data).split(b"\n")
            pending = pending[:_MAX_LINE_CHARS]
            for line in lines:
                if line.strip():
                    on_line(line.decode("utf-8", "replace")[:_MAX_LINE_CHARS])
