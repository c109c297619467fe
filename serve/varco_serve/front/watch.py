"""The outermost layer: every request gets an id, a deadline, one answer, a log line and its place in the metrics.

Whatever goes wrong behind it ends here: as an error document where nothing was sent yet, as an error event where a
stream has begun, as a closed connection otherwise. What we do not know of is one neutral line to the caller, and a
traceback in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from varco_serve.documents.errors import RequestError, envelope
from varco_serve.front.asks import AnswerError
from varco_serve.front.disconnect import ClientGoneError
from varco_serve.front.error_response import error_response
from varco_serve.front.journal import write_failure
from varco_serve.front.record import Record, new_record
from varco_serve.messages import Failed

CLIENT_LEFT = 499
"""nginx's status for a caller that closed the connection before its answer; nothing is sent with it."""
_ENDING = Failed(503, "The server is shutting down. Ask another one, or again in a while.", "draining", None, 5.0)


class Watch:
    """ASGI middleware around everything else.

    Args:
        app: The rest.
        request_timeout_s: How long a request may take in all.
        clock: Seconds, which never go back.
        on_end: Called with the record of each request that has ended, and its seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        request_timeout_s: float,
        clock: Callable[[], float],
        on_end: Callable[[Record, float], None],
    ) -> None:
        self._app = app
        self._request_timeout_s = request_timeout_s
        self._clock = clock
        self._on_end = on_end
        self.num_running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("Bug: the server speaks HTTP alone.")
        record = scope["varco.record"] = new_record(scope, self._clock())
        sender = _Sender(send, record)
        self.num_running += 1
        try:
            await self._answered(scope, receive, sender)
        finally:
            self.num_running -= 1
            self._on_end(record, self._clock() - record.start_s)

    async def _answered(self, scope: Scope, receive: Receive, sender: _Sender) -> None:
        record = sender.record
        try:
            async with asyncio.timeout(self._request_timeout_s) as deadline:
                await self._app(scope, receive, sender)
            return
        except RequestError as refused:
            # Without its traceback, which holds on to this frame, and to all that was made of the request.
            error: RequestError | Failed = refused.with_traceback(None)
        except AnswerError as ended:
            error = ended.failed
        except ClientGoneError:
            if not sender.has_ended:  # uvicorn says so of a client that has its whole answer too
                record.status, record.reason, record.has_failed = CLIENT_LEFT, "disconnected", True
            return
        except asyncio.CancelledError:
            await self._refuse(_ENDING, scope, receive, sender)
            raise
        except Exception as unforeseen:
            if isinstance(unforeseen, TimeoutError) and deadline.expired():
                error = _late(self._request_timeout_s)
            else:
                write_failure(record, unforeseen)
                error = RequestError(
                    f"The server failed. Its log says why, under {record.request_id}.",
                    status=500,
                    code="internal_error",
                    kind="server_error",
                )
        await self._refuse(error, scope, receive, sender)

    async def _refuse(self, error: RequestError | Failed, scope: Scope, receive: Receive, sender: _Sender) -> None:
        record = sender.record
        document = envelope(error)[1]
        record.has_failed = True
        record.reason = error.code or document["error"]["type"]
        if not sender.has_started:
            await error_response(error)(scope, receive, sender)
        elif record.error_event is not None and not sender.has_ended:
            event = record.error_event(document)
            await sender({"type": "http.response.body", "body": event, "more_body": False})
        elif not sender.has_ended:
            raise ConnectionAbortedError("An answer that was half sent cannot be completed.")


class _Sender:
    """Sends an answer, with the headers that all answers to a request carry."""

    def __init__(self, send: Send, record: Record) -> None:
        self._send = send
        self.record = record
        self.has_started = self.has_ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_started = True
            self.record.status = message["status"]
            message = {**message, "headers": [*message.get("headers", []), *self.record.headers]}
        elif message["type"] == "http.response.body":
            self.has_ended = not message.get("more_body", False)
        await self._send(message)


def _late(request_timeout_s: float) -> RequestError:
    return RequestError(
        f"The answer was not complete after {request_timeout_s:g} s. Ask for fewer tokens, or raise --request-timeout.",
        status=504,
        code="request_timeout",
        kind="server_error",
    )
