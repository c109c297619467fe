"""The log: one line per request, without what was asked, answered or shown as a key."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
from typing import Any

import httpx
import pytest

from tests.doubles.front import client, front, listening
from tests.doubles.model import ScriptedModel, answer
from varco_serve.front import journal
from varco_serve.messages import Failed

KEY = "s3cret-key"
JSON = {"content-type": "application/json"}
SECRETS = ("Where is", "the safe", "Behind", "picture-bytes", KEY, "aGlkZGVu", "hidden")
CHAT = {"model": "varco", "messages": [{"role": "user", "content": "Where is the safe?"}], "user": "hidden"}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.DEBUG)
    return lambda: [json.loads(record.message) for record in caplog.records if record.name == journal.LOGGER]


async def ask_everything(**options: Any) -> None:
    """Send what has secrets in every place where a request may have them, to answers of every kind."""
    headers = {"authorization": f"Bearer {KEY}"}
    for script in (answer("Behind ", "the clock"), [Failed(503, "It ended.")], [ValueError("Where is the safe?")]):
        app = front(ScriptedModel(script), keys=(hashlib.sha256(KEY.encode()).digest(),), **options)
        async with client(app, headers=headers) as caller:
            for stream in (True, False):
                await caller.post("/v1/chat/completions", json={**CHAT, "stream": stream})
            await caller.post("/v1/ocr", content=b"picture-bytes", headers={"content-type": "image/png"})
            await caller.get(f"/v1/{KEY}?key={KEY}")
            await caller.get(f"/v1/models?key={KEY}", headers={"x-request-id": f"a {KEY}"})
            await caller.request(KEY.upper(), "/", headers={"authorization": f"Bearer {KEY}x"})
            await caller.post(
                "/v1/chat/completions", content=b'{"aGlkZGVu', headers={"content-type": "application/json"}
            )


def test_no_line_holds_prompts_answers_pictures_or_keys(lines: Any, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(ask_everything())
    assert len([line for line in lines() if "status" in line]) == 21
    text = "\n".join(record.getMessage() + str(record.exc_info) for record in caplog.records if record.name != "httpx")
    for secret in SECRETS:
        assert secret.lower() not in text.lower()


def test_log_content_adds_texts_and_no_picture_and_no_key(lines: Any) -> None:
    asyncio.run(ask_everything(log_content=True))
    text = json.dumps(lines())
    assert "Where is the safe?" in text
    assert "Behind the clock" in text
    for secret in ("picture-bytes", KEY):
        assert secret not in text


def test_a_line_says_what_became_of_a_request(lines: Any) -> None:
    async def asking() -> None:
        async with client(front(ScriptedModel(answer("Behind ", "it")))) as caller:
            await caller.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers={"x-request-id": "a-1"})
            await caller.get("/nothing")

    asyncio.run(asking())
    chat, unknown = lines()
    assert {name: chat[name] for name in ("id", "method", "route", "status", "stream", "reason")} == {
        "id": "a-1",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "stream": True,
        "reason": "stop",
    }
    assert (chat["prompt_tokens"], chat["completion_tokens"]) == (7, 9)
    assert 0 <= chat["queue_s"] <= chat["ttft_s"] <= chat["total_s"]
    assert (unknown["route"], unknown["status"], unknown["reason"]) == (None, 404, "not_found")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_once_it_has_its_answer_was_answered(stream: bool, lines: Any) -> None:
    """uvicorn says `http.disconnect` as soon as an answer is complete, before what made it has been put away."""

    async def asking() -> None:
        async with listening(front(ScriptedModel())) as port:
            for _ in range(5):
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", verify=False) as caller:
                    await caller.post("/v1/chat/completions", json={**CHAT, "stream": stream, "n": 3})

    asyncio.run(asking())
    assert [(line["status"], line["reason"]) for line in lines()] == [(200, "stop")] * 5


@pytest.mark.parametrize(
    ("given", "is_taken"),
    [
        ("a.B_9-z", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("", False),
        ("a b", False),
        ('a"\n{', False),
        ("é", False),
    ],
)
def test_a_request_keeps_its_caller_s_id_where_it_can_stand_in_a_log(given: str, is_taken: bool) -> None:
    async def asking() -> str:
        async with client(front(ScriptedModel())) as caller:
            fields = [(b"x-request-id", given.encode("latin-1"))]
            return (await caller.get("/health", headers=fields)).headers["x-request-id"]  # type: ignore[arg-type]

    answered = asyncio.run(asking())
    assert (answered == given) is is_taken
    assert is_taken or len(answered) == 32


class _Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_log_that_cannot_be_written_harms_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger(journal.LOGGER)
    before = (logger.handlers, logger.propagate, logger.level)
    monkeypatch.setattr("sys.stderr", _Full())
    try:
        journal.log_to_stderr()

        async def asking() -> int:
            async with client(front(ScriptedModel())) as caller:
                return (await caller.get("/health")).status_code

        assert asyncio.run(asking()) == 200
    finally:
        logger.handlers, logger.propagate, logger.level = before
