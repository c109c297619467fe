"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
import uuid
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from varco_serve.documents.answers import ChatStream, chat_answer
from varco_serve.documents.chat import ChatRequest, Limits, parse_chat
from varco_serve.front.asks import Asks
from varco_serve.front.body import read_body
from varco_serve.front.disconnect import unless_gone
from varco_serve.front.event_stream import EventStream, as_event
from varco_serve.front.info_routes import check_ready
from varco_serve.front.json_body import parse_json
from varco_serve.front.record import Record, record_of
from varco_serve.front.service import Service, check_is_json, ignored_header
from varco_serve.messages import Done, Facts, Said

END = b"data: [DONE]\n\n"


class ChatRoute:
    """An ASGI app for OpenAI's chat completions, streamed and not.

    Args:
        service: What asks the model.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        check_is_json(scope)
        facts = check_ready(self._service.model)
        body = await read_body(receive)
        await unless_gone(receive, self._answer(scope, body, facts, receive, send))

    async def _answer(self, scope: Scope, body: bytearray, facts: Facts, receive: Receive, send: Send) -> None:
        service, record = self._service, record_of(scope)
        limits = Limits(service.settings.model_name, facts.max_images)

        def parse() -> ChatRequest:
            return parse_chat(parse_json(body, service.limits), limits)

        request = await service.parsed(parse, len(body))
        body.clear()
        pictures = await service.decoded(request.pictures, scope)
        headers = ignored_header(request.ignored)
        asks = service.asks(record, request.turns, pictures, request.options, request.grammar, request.n)
        async with service.asking(asks, record) as answers:
            if request.stream:
                await self._stream(record, request, answers, EventStream(send, headers))
            else:
                document = await self._whole(request, answers)
                await JSONResponse(document, headers=headers)(scope, receive, send)

    async def _stream(self, record: Record, request: ChatRequest, answers: Asks, stream: EventStream) -> None:
        record.is_stream, record.error_event = True, as_event
        chunks = ChatStream(
            self._service.settings.model_name, _new_id(), int(time.time()), include_usage=request.include_usage
        )
        while (taken := await stream.next(answers, self._service.limits.comment_s)) is not None:
            index, event = taken
            await stream.write(as_event(chunk) for chunk in chunks.take(index, event))
        await stream.write(as_event(chunk) for chunk in chunks.end())
        await stream.end(END)

    async def _whole(self, request: ChatRequest, answers: Asks) -> dict[str, Any]:
        events: list[list[Said | Done]] = [[] for _ in range(request.n)]
        while (taken := await answers.next()) is not None:
            index, event = taken
            if isinstance(event, Said | Done):
                events[index].append(event)
        return chat_answer(self._service.settings.model_name, _new_id(), int(time.time()), events)


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"
