"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from varco_serve.documents.answers import ChatStream, chat_answer, fingerprint
from varco_serve.documents.chat import ChatRequest, Limits, parse_chat
from varco_serve.front.admission import Place
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
        with self._service.admission.place() as place:
            await unless_gone(receive, self._answer(scope, body, facts, place, receive, send))

    async def _answer(
        self, scope: Scope, body: bytearray, facts: Facts, place: Place, receive: Receive, send: Send
    ) -> None:
        request, asks = await self._asked(scope, body, facts, place)
        headers = ignored_header(request.ignored)
        head = (request.model, f"chatcmpl-{uuid.uuid4().hex}", int(time.time()))
        mark = fingerprint(facts)
        async with asks as answers:
            if request.stream:
                chunks = ChatStream(*head, include_usage=request.include_usage, fingerprint=mark)
                await self._stream(record_of(scope), chunks, answers, EventStream(send, headers))
            else:
                document = chat_answer(*head, await _events(answers, request.n), fingerprint=mark)
                await JSONResponse(document, headers=headers)(scope, receive, send)

    async def _asked(self, scope: Scope, body: bytearray, facts: Facts, place: Place) -> tuple[ChatRequest, Asks]:
        """Return what a body asks for, without its pictures, and the answers."""
        service = self._service
        limits = Limits(service.settings.model_name, facts.max_images)

        def parse() -> ChatRequest:
            return parse_chat(parse_json(body, service.limits), limits)

        request = await service.parsed(parse, len(body))
        body.clear()
        place.widen(request.n)
        return replace(request, pictures=()), service.ask(scope, request, request.n)

    async def _stream(self, record: Record, chunks: ChatStream, answers: Asks, stream: EventStream) -> None:
        record.is_stream, record.error_event = True, as_event
        while (taken := await stream.next(answers, self._service.limits.comment_s)) is not None:
            await stream.write(as_event(chunk) for chunk in chunks.take(*taken))
        await stream.write(as_event(chunk) for chunk in chunks.end())
        await stream.end(END)


async def _events(answers: Asks, n: int) -> list[list[Said | Done]]:
    events: list[list[Said | Done]] = [[] for _ in range(n)]
    while (taken := await answers.next()) is not None:
        index, event = taken
        if isinstance(event, Said | Done):
            events[index].append(event)
    return events
