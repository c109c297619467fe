"""The door: target, Host, Origin, then key, before any route sees a request."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from varco_serve.front.host import HostCheck
from varco_serve.front.keys import KeyCheck
from varco_serve.front.origin import OriginCheck, preflight
from varco_serve.front.record import record_of
from varco_serve.settings import ServeSettings

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
"""What asks for no key. Every other path does, known or not."""


class Guard:
    """ASGI middleware that lets a request in or raises `RequestError`.

    Args:
        app: What is behind the door.
        settings: The server's options.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        self._host = HostCheck(settings.host, settings.allowed_hosts)
        self._origin = OriginCheck(settings.cors)
        self._key = KeyCheck(settings.keys, OPEN_PATHS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._host(scope)
        record = record_of(scope)
        record.headers += self._origin(scope)
        # A browser sends no key with the question whether it may ask; the answer names no route.
        if (allowed := preflight(scope)) is not None:
            record.headers += allowed
            await Response(status_code=204)(scope, receive, send)
            return
        self._key(scope)
        await self._app(scope, receive, send)
