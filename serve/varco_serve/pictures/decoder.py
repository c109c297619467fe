"""The front's side of the picture process."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from varco_runtime.picture.bounds import MAX_PIXELS
from varco_serve import wire
from varco_serve.messages import Failed, Pixels

DEADLINE_S = 60.0
"""For one picture, from sending it; its processor time is bounded in the process itself."""

START_S = 30.0
"""How long a picture waits for a process that is being started."""

MAX_HELD_BYTES = 1 << 30
"""Decoded pixels in the front at once, those of all questions that wait together."""

_MAX_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class Connection:
    """A running picture process.

    Args:
        reader: What it sends.
        writer: What it is sent.
        kill: Ends it; called when it does not answer, or answers wrongly. May be called when it has ended already.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    kill: Callable[[], None]


class PictureDecoder:
    """Picture files become pixels, one after the other in the order they came.

    Whoever starts the process says so with `attach`, and with `detach` when it has ended; a picture waits meanwhile.

    Args:
        deadline_s: How long one picture may take before its process is ended.
        start_s: How long a picture waits for a process.
        max_held_bytes: Most bytes of pixels that may be alive at once.
    """

    def __init__(
        self, deadline_s: float = DEADLINE_S, start_s: float = START_S, max_held_bytes: int = MAX_HELD_BYTES
    ) -> None:
        self._deadline_s = deadline_s
        self._start_s = start_s
        self._max_held_bytes = max_held_bytes
        self._held_bytes = 0
        self._numbers = itertools.count(1)
        self._turn = asyncio.Lock()
        self._connection: Connection | None = None
        self._is_attached = asyncio.Event()

    @property
    def held_bytes(self) -> int:
        """Return how many bytes of pixels are alive."""
        return self._held_bytes

    def attach(self, connection: Connection) -> None:
        """Take a process that has been started."""
        self._connection = connection
        self._is_attached.set()

    def detach(self, connection: Connection) -> None:
        """Forget a process that has ended; nothing if another has taken its place."""
        if self._connection is connection:
            self._connection = None
            self._is_attached.clear()

    async def decode(self, data: bytes) -> Pixels | Failed:
        """Return a picture file's pixels, upright RGB, or why there are none.

        A caller that is cancelled while its picture is being decoded leaves the process at work: its answer is read
        and dropped, and the next picture follows.

        Args:
            data: The whole file.
        """
        await self._turn.acquire()
        exchange = asyncio.create_task(self._exchange(data))
        exchange.add_done_callback(lambda _: self._turn.release())
        return await asyncio.shield(exchange)

    async def _exchange(self, data: bytes) -> Pixels | Failed:
        try:
            async with asyncio.timeout(self._start_s):
                await self._is_attached.wait()
        except TimeoutError:
            return Failed(503, "No picture can be decoded at the moment. Ask again.", retry_after_s=5.0)
        connection = self._connection
        assert connection is not None, "Bug: attached to nothing"
        number = next(self._numbers)
        try:
            async with asyncio.timeout(self._deadline_s):
                await wire.send_async(connection.writer, {"id": number}, data)
                header, body = await wire.receive_async(connection.reader)
            return self._result(number, header, body)
        except TimeoutError:
            reason = f"The picture was not decoded within {self._deadline_s:g} s. Ask again, or give a smaller one."
        except wire.WireError:
            reason = "The picture's decoder ended before it had answered. Ask again, or save the picture anew."
        self.detach(connection)
        connection.writer.close()
        connection.kill()
        return Failed(503, reason, retry_after_s=1.0)

    def _result(self, number: int, header: dict[str, Any], body: bytes) -> Pixels | Failed:
        """Return what a reply says. The process has read an untrusted file, so its words are checked like one.

        Raises:
            WireError: It is no reply to this request.
        """
        if header.get("id") != number:
            raise wire.WireError("The picture process answers another request.")
        if "error" in header:
            message, code = header["error"], header.get("code")
            if not _is_line(message) or not (code is None or _is_line(code)):
                raise wire.WireError("The picture process refuses without a line of reasons.")
            return Failed(400, message, code=code)
        width, height, is_animated = (header.get(name) for name in ("width", "height", "is_animated"))
        if type(width) is not int or type(height) is not int or type(is_animated) is not bool:
            raise wire.WireError("The picture process sends no size.")
        if min(width, height) < 1 or width * height > MAX_PIXELS or len(body) != 3 * width * height:
            raise wire.WireError("The picture process sends pixels of another size than it says.")
        if self._held_bytes + len(body) > self._max_held_bytes:
            return Failed(
                429,
                f"Pictures of questions that wait take {self._held_bytes:,} bytes of memory already, of "
                f"{self._max_held_bytes:,} in all. Ask again, or give smaller pictures.",
                retry_after_s=5.0,
            )
        pixels = Pixels(width, height, body, is_animated)
        self._held_bytes += len(body)
        weakref.finalize(pixels, self._release, len(body)).atexit = False
        return pixels

    def _release(self, num_bytes: int) -> None:
        self._held_bytes -= num_bytes


def _is_line(text: object) -> bool:
    return isinstance(text, str) and 0 < len(text) <= _MAX_MESSAGE and text.isprintable()
