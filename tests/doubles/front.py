"""A front over a double of the model: asked through ASGI alone, or through a real socket in this process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from starlette.types import ASGIApp

from varco_serve.front.app import Front, create_app
from varco_serve.front.limits import FrontLimits
from varco_serve.front.server import HttpServer
from varco_serve.messages import Model
from varco_serve.settings import ServeSettings


def settings(**changed: Any) -> ServeSettings:
    """Options of a server that is started with a bundle alone."""
    return ServeSettings(bundle=Path("bundle"), **changed)


def client(app: ASGIApp, **options: Any) -> httpx.AsyncClient:
    """A client without any socket."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:8000", **options)


def front(model: Model, limits: FrontLimits | None = None, **changed: Any) -> Front:
    """A front over a model."""
    return create_app(settings(**changed), model, limits)


@contextlib.asynccontextmanager
async def listening(app: Front, limits: FrontLimits | None = None, stop_s: int = 1) -> AsyncIterator[int]:
    """Serve an app on a port of loopback, which is given."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    server = HttpServer(app, limits, stop_s=stop_s)
    running = asyncio.create_task(server.serve_on(bound))
    try:
        await server.until_started()
        yield bound.getsockname()[1]
    finally:
        server.stop()
        await running


async def exchange(port: int, data: bytes) -> bytes:
    """Send bytes and return all that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await reader.read()
    finally:
        writer.close()
