"""Health, models, metadata."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.doubles.front import client, front, listening
from tests.doubles.model import FACTS, ScriptedModel, answer
from varco_serve.front.server import HttpServer


def get(model: ScriptedModel, path: str, method: str = "GET") -> tuple[int, Any, Any]:
    async def asking() -> tuple[int, Any, Any]:
        async with client(front(model)) as caller:
            response = await caller.request(method, path)
            return response.status_code, response.json() if response.content else None, response.headers

    return asyncio.run(asking())


@pytest.mark.parametrize("reason", ["loading", "restarting", "draining"])
def test_a_server_that_cannot_answer_lives_and_says_why_it_is_not_ready(reason: str) -> None:
    model = ScriptedModel()
    model.not_ready = reason
    assert get(model, "/health/live")[:2] == (200, {"status": "ok"})
    for path in ("/health", "/health/ready"):
        status, document, headers = get(model, path)
        assert (status, document) == (503, {"status": "not ready", "reason": reason})
        assert headers["retry-after"] == "5"
    model.not_ready = None
    assert get(model, "/health/ready")[:2] == (200, {"status": "ready"})


def test_the_model_is_listed_with_its_context() -> None:
    status, document, _ = get(ScriptedModel(), "/v1/models")
    assert status == 200
    assert [(one["id"], one["max_model_len"]) for one in document["data"]] == [("varco", FACTS.max_context)]


def test_metadata_says_what_runs_and_under_which_licence() -> None:
    document = get(ScriptedModel(), "/v1/metadata")[1]
    assert document["license"] == "CC BY-NC 4.0"
    assert (document["model"], document["served_as"]) == ("double", "varco")
    assert document["limits"]["slots"] == FACTS.slots
    assert document["limits"]["max_body_bytes"] == 32 << 20


def test_models_and_metadata_are_not_known_before_the_model_is_loaded() -> None:
    model = ScriptedModel()
    model.facts, model.not_ready = None, "loading"
    for path in ("/v1/models", "/v1/metadata"):
        assert get(model, path)[0] == 503


@pytest.mark.parametrize(("path", "allowed"), [("/v1/models", "GET, HEAD"), ("/v1/ocr", "POST")])
def test_another_method_is_told_which_are_taken(path: str, allowed: str) -> None:
    async def asking() -> Any:
        async with client(front(ScriptedModel())) as caller:
            return await caller.delete(path)

    answered = asyncio.run(asking())
    assert (answered.status_code, answered.headers["allow"]) == (405, allowed)


def test_a_head_request_is_answered_without_a_body() -> None:
    async def asking() -> bytes:
        async with listening(front(ScriptedModel())) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"HEAD /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            received = await reader.read()
            writer.close()
            return received

    head, _, body = asyncio.run(asking()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == b""


def test_a_server_that_stops_lets_answers_end_first() -> None:
    async def asking() -> tuple[int, str]:
        gate = asyncio.Event()
        model = ScriptedModel([gate, *answer("Hello")])
        app = front(model)
        async with client(app) as caller:
            body = {"model": "varco", "messages": [{"role": "user", "content": "Hello"}]}
            asked = asyncio.ensure_future(caller.post("/v1/chat/completions", json=body))
            while not app.num_running:
                await asyncio.sleep(0)
            model.not_ready = "draining"
            assert (await caller.post("/v1/chat/completions", json=body)).status_code == 503
            idle = asyncio.ensure_future(app.until_idle())
            await asyncio.sleep(0)
            assert not idle.done()
            gate.set()
            await idle
            response = await asked
            return response.status_code, response.json()["choices"][0]["message"]["content"]

    assert asyncio.run(asking()) == (200, "Hello")


def test_signals_are_left_to_whoever_starts_the_server() -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)

    async def serving() -> Any:
        server = HttpServer(front(ScriptedModel()))
        with server.capture_signals():
            return signal.getsignal(signal.SIGTERM)

    assert asyncio.run(serving()) == before
