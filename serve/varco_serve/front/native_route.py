"""`POST /v1/ocr`, `/v1/ground` and `/v1/refer`: a picture as the body, or JSON; answered as `varco run --json` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from varco_serve.documents.errors import RequestError
from varco_serve.documents.native import NativeRequest, formatted, in_native_words, parse_native
from varco_serve.front.asks import AnswerError, Asks
from varco_serve.front.body import read_body
from varco_serve.front.disconnect import unless_gone
from varco_serve.front.event_stream import EventStream, as_event
from varco_serve.front.info_routes import check_ready
from varco_serve.front.json_body import parse_json
from varco_serve.front.record import Record, record_of
from varco_serve.front.service import Service, ignored_header, media_type
from varco_serve.messages import Done, Said

_MAX_FIELDS = 32


class NativeRoute:
    """An ASGI app for one of VARCO's tasks.

    Args:
        service: What asks the model.
        task: `ocr`, `ground` or `refer`.
    """

    def __init__(self, service: Service, task: str) -> None:
        self._service = service
        self._task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        content_type = media_type(scope)
        if not (content_type in ("application/json", "application/octet-stream") or content_type.startswith("image/")):
            # Pages in a browser may send forms and plain text unasked; curl sends a form unless it is told otherwise.
            raise RequestError(
                "The body must be a picture or JSON. Send a header such as: Content-Type: image/png",
                status=415,
                code="unsupported_media_type",
            )
        query = _query(scope["query_string"])
        check_ready(self._service.model)
        body = await read_body(receive)
        with self._service.admission.place():
            await unless_gone(receive, self._answer(scope, query, body, receive, send))

    async def _answer(self, scope: Scope, query: dict[str, str], body: bytearray, receive: Receive, send: Send) -> None:
        is_stream = _accepts_events(scope)
        request, asks = await self._asked(scope, query, body, is_stream)
        headers = ignored_header(request.ignored)
        try:
            async with asks as answers:
                if is_stream:
                    await self._stream(record_of(scope), answers, EventStream(send, headers))
                    return
                while (taken := await answers.next()) is not None:
                    event = taken[1]
        except AnswerError as error:
            raise AnswerError(in_native_words(error.failed)) from None
        assert isinstance(event, Done), "Bug: an answer without its end."
        content_type, text = formatted(event.document, request.format)
        await Response(text, headers={"content-type": content_type, **headers})(scope, receive, send)

    async def _asked(
        self, scope: Scope, query: dict[str, str], body: bytearray, is_stream: bool
    ) -> tuple[NativeRequest, Asks]:
        """Return what a body asks for, without its picture, and the answer."""
        content_type = media_type(scope)

        def parse() -> NativeRequest:
            is_json = content_type == "application/json"
            return parse_native(
                self._task, query, content_type, parse_json(body, self._service.limits) if is_json else bytes(body)
            )

        request = await self._service.parsed(parse, len(body))
        body.clear()
        if is_stream and request.format != "json":
            raise RequestError("Events are JSON. Leave out format, or the header Accept.", param="format")
        return replace(request, pictures=()), self._service.ask(scope, request)

    async def _stream(self, record: Record, answers: Asks, stream: EventStream) -> None:
        record.is_stream, record.error_event = True, _error_event
        while (taken := await stream.next(answers, self._service.limits.comment_s)) is not None:
            event = taken[1]
            if isinstance(event, Said):
                await stream.write(_piece(event))
            elif isinstance(event, Done):
                await stream.end(as_event(event.document, "done"))


def _piece(said: Said) -> list[bytes]:
    texts = (
        [as_event({"text": said.text, "plain_text": said.plain_text}, "text")] if said.text or said.plain_text else []
    )
    return texts + [as_event(region, "region") for region in said.regions]


def _error_event(document: Mapping[str, Any]) -> bytes:
    return as_event(document, "error")


def _accepts_events(scope: Scope) -> bool:
    return any(name == b"accept" and b"text/event-stream" in value for name, value in scope["headers"])


def _query(query: bytes) -> dict[str, str]:
    try:
        fields = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise RequestError(f"The address has more than {_MAX_FIELDS} fields, or is not UTF-8.") from None
    if len(dict(fields)) != len(fields):
        raise RequestError("The address has a field twice.")
    return dict(fields)
