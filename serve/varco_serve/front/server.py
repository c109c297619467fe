"""HTTP on a socket that is bound already: uvicorn without its signals, its logs and its command line."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator
from dataclasses import replace

import uvicorn
from starlette.types import ASGIApp

from varco_serve.front.descriptors import connections_allowed
from varco_serve.front.limits import FrontLimits
from varco_serve.front.protocol import protocol_for


class HttpServer(uvicorn.Server):
    """Serves an app within the running event loop. Whoever starts it takes care of signals.

    Args:
        app: What answers.
        limits: Bounds of connections.
        stop_s: How long answers may go on once `stop` was called.
    """

    def __init__(self, app: ASGIApp, limits: FrontLimits | None = None, *, stop_s: int = 2) -> None:
        limits = limits or FrontLimits()
        limits = replace(limits, max_connections=connections_allowed(limits.max_connections))
        self._is_stopped = asyncio.Event()
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol_for(limits),
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level="critical",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=limits.keep_alive_s,
                timeout_graceful_shutdown=stop_s,
                h11_max_incomplete_event_size=limits.max_header_bytes,
            )
        )

    async def serve_on(self, listening: socket.socket) -> None:
        """Answer until `stop` is called.

        Args:
            listening: A bound socket, which is closed at the end.
        """
        await self.serve(sockets=[listening])

    async def until_started(self) -> None:
        """Wait until connections are taken."""
        while not self.started:
            await asyncio.sleep(0.005)

    def stop(self) -> None:
        """Take no more connections, close idle ones, and end once the others have been answered or `stop_s` is over."""
        self.should_exit = True
        self._is_stopped.set()

    async def main_loop(self) -> None:
        """Set the header Date once a second until the end. uvicorn's own loop wakes up ten times a second."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_stopped.wait(), 1)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone."""
        yield
