"""The picture process: started, and started again whenever a picture has ended it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from varco_serve.messages import Failed, Pixels
from varco_serve.pictures.decoder import Connection, PictureDecoder
from varco_serve.supervisor.process import Process

_SHORT_LIFE_S = 1.0
_WAIT_S = 1.0
"""Before the next start of a process that did not live long: it may be unable to start at all."""


class PictureService:
    """Decodes pictures in a process that may die of them.

    Args:
        log: Takes the name of an event and what is said of it.

    Attributes:
        restarts: How often the process was started again.
    """

    def __init__(self, log: Callable[..., None]) -> None:
        self._log = log
        self._decoder = PictureDecoder()
        self._process: Process | None = None
        self.restarts = 0

    async def decode(self, data: bytes) -> Pixels | Failed:
        """Return a picture file's pixels, or why there are none."""
        return await self._decoder.decode(data)

    async def run(self) -> None:
        """Keep the process alive until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                started_s = loop.time()
                try:
                    status: int | str = await self._live()
                except OSError as error:  # no descriptors, no processes
                    status = error.strerror or "cannot be started"
                self._log("pictures_ended", status=status)
                self.restarts += 1
                if loop.time() - started_s < _SHORT_LIFE_S:
                    await asyncio.sleep(_WAIT_S)
        finally:
            await self.end()

    async def _live(self) -> int:
        process = self._process = await Process.start(
            "varco_serve.pictures", lambda line: self._log("pictures", line=line)
        )
        connection = Connection(process.reader, process.writer, process.kill)
        self._decoder.attach(connection)
        try:
            await process.wait()
        finally:
            self._decoder.detach(connection)
            self._process = None
            status = await process.end()
        return status

    async def end(self) -> None:
        """End the process."""
        if self._process is not None:
            await self._process.end()
