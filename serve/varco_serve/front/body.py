"""A request's body: how many bytes, how slowly, and how many of all requests together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from varco_serve.documents.errors import RequestError
from varco_serve.front.disconnect import ClientGoneError
from varco_serve.front.limits import FrontLimits


class Budget:
    """Bytes that all requests may hold together: bodies, and pictures on their way to the worker.

    Args:
        max_bytes: How many.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.held_bytes = 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """Give one request a share, which is empty at first and is given back at its end."""
        share = Share(self)
        try:
            yield share
        finally:
            share.give_back()

    def take(self, num_bytes: int) -> None:
        """Take some of it.

        Raises:
            RequestError: 503, others hold too much.
        """
        if self.held_bytes + num_bytes > self._max_bytes:
            raise RequestError(
                "The pictures of all requests under way fill the memory that they may take. Try again in a while.",
                status=503,
                code="overloaded",
                kind="server_error",
                retry_after_s=5.0,
            )
        self.held_bytes += num_bytes


class Share:
    """What one request holds of a `Budget`.

    Args:
        budget: The budget.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Hold more.

        Raises:
            RequestError: 503, others hold too much.
        """
        self._budget.take(num_bytes)
        self._num_bytes += num_bytes

    def give_back(self) -> None:
        """Hold nothing."""
        self._budget.held_bytes -= self._num_bytes
        self._num_bytes = 0


class BodyBounds:
    """ASGI middleware that ends a body that is too long or too slow, around a route that reads one.

    Args:
        app: What reads the body.
        limits: How many bytes, and how fast.
        budget: Of all requests together.
    """

    def __init__(self, app: ASGIApp, limits: FrontLimits, budget: Budget) -> None:
        self._app = app
        self._limits = limits
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_length(scope)
        with self._budget.share() as share:
            scope["varco.share"] = share
            await self._app(scope, self._bounded(receive, share), send)

    def _check_length(self, scope: Scope) -> None:
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self._limits.max_body_bytes:
                raise self._too_long()

    def _bounded(self, receive: Receive, share: Share) -> Receive:
        num_bytes = 0
        is_complete = False
        start_s = asyncio.get_running_loop().time()

        async def bounded() -> Message:
            nonlocal num_bytes, is_complete
            if is_complete:
                return await receive()
            allowed_s = self._limits.body_s + num_bytes / self._limits.min_body_bytes_per_s
            try:
                async with asyncio.timeout_at(start_s + allowed_s):
                    message = await receive()
            except TimeoutError:
                raise RequestError(
                    "The request's body came too slowly. Send it faster, or less of it.", status=408, code="slow_body"
                ) from None
            num_new = len(message.get("body", b""))
            num_bytes += num_new
            if num_bytes > self._limits.max_body_bytes:
                raise self._too_long()
            share.take(num_new)
            is_complete = not message.get("more_body", False)
            return message

        return bounded

    def _too_long(self) -> RequestError:
        return RequestError(
            f"The request has more than {self._limits.max_body_bytes >> 20} MiB. Send smaller or fewer pictures.",
            status=413,
            code="request_too_large",
        )


async def read_body(receive: Receive) -> bytearray:
    """Return a request's whole body.

    Args:
        receive: Behind `BodyBounds`.

    Raises:
        ClientGoneError: The client left before its end.
        RequestError: 408 or 413.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body
