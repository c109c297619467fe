"""uvicorn's h11 protocol, with what it leaves open: late headers, endless bodies, stalled readers, pipelining.

uvicorn 0.54 has a timeout for idle connections between requests and none for the header of one, the first included.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, ClassVar

import h11
from h11._state import MIGHT_SWITCH_PROTOCOL
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from varco_serve.documents.errors import RequestError, envelope
from varco_serve.front.connection import BoundedConnection
from varco_serve.front.limits import FrontLimits

READ_BYTES = 16 << 10
"""Bytes that are parsed before other connections have their turn: a body in small chunks takes 10 us for each."""
_COMPLETE = (h11.DONE, MIGHT_SWITCH_PROTOCOL, h11.MUST_CLOSE)


class FrontProtocol(H11Protocol):
    """One client's connection. `protocol_for` makes the class of one server."""

    limits: ClassVar[FrontLimits]
    waiting: ClassVar[dict[FrontProtocol, None]]
    """Connections that wait for a request, whether it is their first or their next; the oldest first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = BoundedConnection(self.limits.max_header_bytes)
        self._is_refused = False
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request; of too many connections, close the one that has waited longest for its."""
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        if hasattr(transport, "max_size"):  # how much asyncio's transports read at once; 256 KiB unless told
            transport.max_size = READ_BYTES
        self._expect_header()
        if len(self.connections) > self.limits.max_connections:
            next(iter(self.waiting)).transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.waiting.pop(self, None)
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request; while one is answered, bytes of the next are dropped and the connection will close.

        Reading goes on then, because only who reads sees that a client has left.
        """
        if self._is_refused:
            return
        if self._is_answering():
            self.cycle.keep_alive = False
            return
        super().data_received(data)
        if self._is_answering() and self.conn.trailing_data[0]:
            self.cycle.keep_alive = False
        if self._is_answering():
            self.flow.resume_reading()
        if self.conn.their_state is not h11.SEND_BODY and not self._is_refused:
            self._stop_timer("linger")
        if self.conn.their_state is not h11.IDLE:
            self.waiting.pop(self, None)
            self._stop_timer("header")
        elif not self.transport.is_closing():
            self._expect_header()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete and self.conn.their_state in _COMPLETE

    def on_response_complete(self) -> None:
        """Go on to the next request; of a body that nobody wanted, read the rest only for a while."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY:
            self._start_timer("linger", self.limits.linger_s)
        elif self.conn.their_state is h11.IDLE:
            self.waiting[self] = None

    def shutdown(self) -> None:
        if self._is_refused:
            self.transport.abort()
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_timer("stalled", self.limits.stalled_write_s)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_timer("stalled")

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or is out of bounds. uvicorn's message is the same for all of it."""
        assert isinstance(self.conn, BoundedConnection), "Bug: a connection without bounds."
        self._refuse(400, RequestError(self.conn.fault, code="invalid_http"))

    def _refuse_late_header(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(408, RequestError("The request's header came too slowly.", status=408, code="slow_header"))
        else:
            self.transport.abort()

    def _refuse(self, status: int, error: RequestError) -> None:
        """Send an error document, if an answer can still be sent, and end the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(envelope(error)[1]).encode()
            fields = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
            response = h11.Response(status_code=status, headers=fields, reason=STATUS_PHRASES[status])
            self.transport.write(self.conn.send(response) + self.conn.send(h11.Data(data=body)))
            self.conn.send(h11.EndOfMessage())
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._is_refused = True
        # A connection that is closed while bytes of it are unread is reset, and its client may never see the answer.
        self.transport.write_eof()
        self.flow.resume_reading()
        self._start_timer("linger", self.limits.linger_s)

    def _expect_header(self) -> None:
        self.waiting[self] = None
        if "header" not in self._timers:
            self._start_timer("header", self.limits.header_s, self._refuse_late_header)

    def _start_timer(self, name: str, seconds: float, on_end: Callable[[], None] | None = None) -> None:
        self._stop_timer(name)
        self._timers[name] = self.loop.call_later(seconds, on_end or self.transport.abort)

    def _stop_timer(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()


def protocol_for(limits: FrontLimits) -> type[FrontProtocol]:
    """Return the protocol of one server.

    Args:
        limits: Its bounds.
    """
    return type("FrontProtocol", (FrontProtocol,), {"limits": limits, "waiting": {}})
