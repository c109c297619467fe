"""Chat completions: in one piece and as events, several at once, waiting, failing before and after they began."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.doubles.front import client, front, listening
from tests.doubles.model import FACTS, ScriptedModel, answer, done
from varco_serve.front.app import Front
from varco_serve.front.limits import FrontLimits
from varco_serve.messages import Ask, Begun, Failed, Said

CHAT = {"model": "varco", "messages": [{"role": "user", "content": "Hello"}]}
IMPATIENT = dataclasses.replace(FrontLimits(), comment_s=0.01)


def ask(
    model: ScriptedModel, limits: FrontLimits | None = None, *, options: Any = None, **fields: Any
) -> httpx.Response:
    """Return what is answered to a chat request."""

    async def asking() -> httpx.Response:
        async with client(front(model, limits, **(options or {}))) as caller:
            return await caller.post("/v1/chat/completions", json={**CHAT, **fields})

    return asyncio.run(asking())


def events_of(response: httpx.Response) -> list[Any]:
    """Return the data of a stream's events."""
    lines = [line for line in response.text.split("\n\n") if line.startswith("data: ")]
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["message"]


def test_an_answer_in_one_piece() -> None:
    model = ScriptedModel()
    document = ask(model).json()
    assert document["object"] == "chat.completion"
    assert document["choices"][0]["message"]["content"] == "Hello there"
    assert document["choices"][0]["finish_reason"] == "stop"
    assert [turn.role for turn in model.asks[0].turns] == ["user"]


def test_a_stream_says_role_pieces_reason_usage_and_its_end() -> None:
    response = ask(ScriptedModel(), stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, last = events_of(response)
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks] == ["assistant", None, None, None]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "Hello there"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert usage["choices"] == []
    assert "usage" in usage
    assert last == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_several_answers_are_told_apart_by_their_index_and_their_seeds() -> None:
    gates = [asyncio.Event() for _ in range(2)]

    def script(ask: Ask, number: int) -> list[Any]:
        # The second answer goes on only after the first has ended, and ends after it.
        if number == 0:
            return [Begun(7), Said("a", "a"), gates[0], done("ab")]
        gates[0].set()
        return [Begun(7), Said("c", "c"), done("cd")]

    model = ScriptedModel(script)
    chunks = events_of(ask(model, stream=True, n=2, seed=40))[:-1]
    said = [(choice["index"], choice["delta"].get("content")) for chunk in chunks for choice in chunk["choices"]]
    assert (0, "a") in said
    assert (1, "c") in said
    assert [one.options.get("seed") for one in model.asks] == [40, 41]


class Tapped:
    """An app that opens a gate as soon as it has sent a comment."""

    def __init__(self, app: Front, gate: asyncio.Event) -> None:
        self.app = app
        self.gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tapped(message: Message) -> None:
            if message.get("body") == b": waiting\n\n":
                self.gate.set()
            await send(message)

        await self.app(scope, receive, tapped)


def ask_with_gate(*script: Any) -> httpx.Response:
    """Return the stream of an answer that goes on, where the script has a None, once a comment was sent."""

    async def asking() -> httpx.Response:
        gate = asyncio.Event()
        model = ScriptedModel([gate if step is None else step for step in script])
        async with client(Tapped(front(model, IMPATIENT), gate)) as caller:
            return await caller.post("/v1/chat/completions", json={**CHAT, "stream": True})

    return asyncio.run(asking())


def test_a_stream_that_waits_sends_comments_and_then_its_answer() -> None:
    response = ask_with_gate(Begun(7), Said("Hello", "Hello"), None, done("Hello"))
    assert "\n\n: waiting\n\n" in response.text
    assert response.text.endswith("data: [DONE]\n\n")


def test_a_stream_that_waits_for_its_place_begins_with_a_comment_and_may_still_fail() -> None:
    response = ask_with_gate(None, Failed(503, "The queue was too long.", retry_after_s=3))
    assert response.status_code == 200
    assert response.text.startswith(": waiting\n\n")
    assert events_of(response)[-1]["error"]["message"] == "The queue was too long."


@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_before_anything_was_sent_has_its_status(stream: bool) -> None:
    failed = Failed(429, "The queue is full.", code="queue_full", retry_after_s=2.0)
    response = ask(ScriptedModel([failed]), stream=stream)
    assert error_of(response) == (429, "queue_full", "The queue is full.")
    assert response.headers["retry-after"] == "2"


@pytest.mark.parametrize("n", [1, 3])
def test_a_failure_of_one_answer_within_a_stream_is_an_event_and_ends_the_others(n: int) -> None:
    def script(ask: Ask, number: int) -> list[Any]:
        if number == n - 1:
            return [Begun(7), Said("a", "a"), Failed(503, "The worker ended.", retry_after_s=1.0)]
        return [Begun(7), asyncio.Event()]

    model = ScriptedModel(script)
    events = events_of(ask(model, stream=True, n=n))
    assert events[-1]["error"]["message"] == "The worker ended."
    assert "[DONE]" not in events
    assert (model.num_running, model.num_cancelled) == (0, n - 1)


@pytest.mark.parametrize("stream", [True, False])
def test_a_fault_of_ours_is_one_neutral_line(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    model = ScriptedModel([RuntimeError("/home/secret.py broke at 0x7f00 on 'prompt'")])
    with caplog.at_level("INFO", "varco_serve.requests"):
        response = ask(model, stream=stream)
    status, code, message = error_of(response)
    assert (status, code) == (500, "internal_error")
    for leak in ("secret", "0x7f", "RuntimeError", "Traceback"):
        assert leak not in response.text
    failure = json.loads(caplog.messages[0])
    assert failure["failure"] == "RuntimeError"
    assert failure["id"] in message
    assert "secret" not in caplog.text


def test_a_fault_of_ours_within_a_stream_is_an_event() -> None:
    events = events_of(ask(ScriptedModel([Begun(7), Said("a", "a"), KeyError("x")]), stream=True))
    assert events[-1]["error"]["code"] == "internal_error"


def test_an_answer_that_ends_without_its_end_is_a_fault() -> None:
    assert error_of(ask(ScriptedModel([Begun(7)])))[:2] == (500, "internal_error")


def test_a_request_that_takes_too_long_ends() -> None:
    def script(ask: Ask, number: int) -> list[Any]:
        return [Begun(7), Said("a", "a"), asyncio.Event()]

    model = ScriptedModel(script)
    assert error_of(ask(model, options={"request_timeout_s": 0.05}))[:2] == (504, "request_timeout")
    events = events_of(ask(model, options={"request_timeout_s": 0.5}, stream=True))
    assert events[-1]["error"]["code"] == "request_timeout"
    assert (model.num_running, model.num_cancelled) == (0, 2)


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_the_server_s_end_cuts_off_says_so(stream: bool) -> None:
    async def asking() -> bytes:
        model = ScriptedModel([Begun(7), Said("a", "a"), asyncio.Event()])
        async with listening(front(model), stop_s=0) as port:
            body = json.dumps({**CHAT, "stream": stream}).encode()
            fields = f"host: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{fields}".encode() + body)
            received = await reader.readuntil(b'"a"') if stream else b""
            while not model.num_begun:
                await asyncio.sleep(0.001)
        received += await reader.read()
        writer.close()
        return received

    received = asyncio.run(asking())
    assert received.startswith(b"HTTP/1.1 200 " if stream else b"HTTP/1.1 503 ")
    assert b'"code":"draining"' in received


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("", 415),
        (None, 415),
    ],
)
def test_only_json_is_taken(content_type: str | None, status: int) -> None:
    async def asking() -> int:
        headers = {} if content_type is None else {"content-type": content_type}
        async with client(front(ScriptedModel())) as caller:
            body = json.dumps(CHAT).encode()
            return (await caller.post("/v1/chat/completions", content=body, headers=headers)).status_code

    assert asyncio.run(asking()) == status


def test_no_question_is_taken_while_the_model_is_loaded_or_the_server_ends() -> None:
    model = ScriptedModel()
    model.facts, model.not_ready = None, "loading"
    response = ask(model)
    assert error_of(response)[:2] == (503, "loading")
    assert response.headers["retry-after"] == "5"
    model.facts, model.not_ready = FACTS, "draining"
    assert error_of(ask(model))[:2] == (503, "draining")
    model.not_ready = "restarting"  # those who ask now wait for the new worker
    assert ask(model).status_code == 200


def test_line_ends_of_any_reader_stay_within_an_event() -> None:
    text = "a\u2028b\u2029c\x85d\r\ne"
    events = events_of(ask(ScriptedModel(answer(text)), stream=True))
    assert events[1]["choices"][0]["delta"]["content"] == text
    response = ask(ScriptedModel(answer(text)), stream=True)
    assert all(line == "" or line.startswith("data: ") for line in response.text.splitlines())
