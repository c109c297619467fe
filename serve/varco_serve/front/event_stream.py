"""Server-sent events: an answer while it is made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.types import Send

from varco_serve.front.asks import Asks
from varco_serve.messages import Begun, Done, Said

COMMENT = b": waiting\n\n"
"""What clients skip: it shows them, and proxies, that the connection lives."""
_LINE_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def as_json(document: Any) -> str:
    """Return a document in one line, by every reader's notion of lines."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_LINE_ENDS)


def as_event(document: Any, name: str | None = None) -> bytes:
    """Return one event.

    Args:
        document: Its data.
        name: Its type; None for the usual one, `message`.
    """
    prefix = "" if name is None else f"event: {name}\n"
    return f"{prefix}data: {as_json(document)}\n\n".encode()


class EventStream:
    """One stream to a client. Nothing is sent before the first event, so that a refusal has its status.

    Args:
        send: ASGI's channel.
        headers: Further header fields.
    """

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send = send
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._is_open = False

    async def write(self, events: Iterable[bytes]) -> None:
        """Send events, one message for all of them."""
        if data := b"".join(events):
            await self._open()
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, last: bytes = b"") -> None:
        """Send what comes last, and close the answer."""
        await self._open()
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    async def next(self, asks: Asks, comment_s: float) -> tuple[int, Begun | Said | Done] | None:
        """Return the next event of the answers, with a comment to the client after each silence.

        Args:
            asks: The answers.
            comment_s: How long a silence is.

        Raises:
            AnswerError: An answer failed.
        """
        while True:
            try:
                return await asks.next(comment_s)
            except TimeoutError:
                await self.write([COMMENT])

    async def _open(self) -> None:
        if not self._is_open:
            self._is_open = True
            fields = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),  # nginx would collect events before it sends them on
                *self._headers,
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": fields})
