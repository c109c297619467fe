"""OpenAI's client and a server that is full or starting: it asks again, when it is told to."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest

from tests.doubles.front import front
from tests.doubles.model import ScriptedModel, answer
from tests.makers.requests import user
from tests.makers.server import RunningServer, until
from varco_serve.messages import Ask, Failed

FULL = Failed(429, "The queue is full.", "queue_full", retry_after_s=3)
AWAY = Failed(503, "The model is being started again.", "restarting", retry_after_s=2)
HELLO: Any = [user("Hello")]


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client slept; it does not."""
    seconds: list[float] = []

    async def sleep(delay: float) -> None:
        seconds.append(delay)

    monkeypatch.setattr("openai._base_client.anyio.sleep", sleep)
    return seconds


def failing(*failures: Failed) -> ScriptedModel:
    def script(_: Ask, number: int) -> Any:
        return [failures[number]] if number < len(failures) else answer("Hello", " there")

    return ScriptedModel(script)


def asked(model: ScriptedModel, max_retries: int, stream: bool = False) -> str:
    async def ask() -> str:
        transport = httpx.ASGITransport(front(model))
        async with openai.AsyncOpenAI(
            base_url="http://localhost:8000/v1",
            api_key="none",
            max_retries=max_retries,
            http_client=httpx.AsyncClient(transport=transport),
        ) as client:
            if not stream:
                whole = await client.chat.completions.create(model="varco", messages=HELLO)
                return whole.choices[0].message.content or ""
            chunks = await client.chat.completions.create(model="varco", messages=HELLO, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    return asyncio.run(ask())


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_asked_again_after_the_time_that_was_named(slept: list[float], stream: bool) -> None:
    model = failing(FULL, AWAY)
    assert asked(model, max_retries=2, stream=stream) == "Hello there"
    assert slept == [3, 2]
    assert len(model.asks) == 3


@pytest.mark.parametrize(("failure", "error"), [(FULL, openai.RateLimitError), (AWAY, openai.InternalServerError)])
def test_without_retries_the_error_says_what_it_is(
    slept: list[float], failure: Failed, error: type[openai.APIStatusError]
) -> None:
    with pytest.raises(error) as caught:
        asked(failing(failure), max_retries=0)
    assert (caught.value.status_code, caught.value.code) == (failure.status, failure.code)
    assert caught.value.response.headers["retry-after"] == str(failure.retry_after_s)
    assert slept == []


def test_a_failure_within_a_stream_is_an_error_of_the_client() -> None:
    begun = answer("Hello")[:2]
    with pytest.raises(openai.APIError, match="started again"):
        asked(ScriptedModel([*begun, AWAY]), max_retries=0, stream=True)


def test_a_real_server_that_is_full_answers_once_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        RunningServer("--slots", "1", "--threads", "1", "--max-queue", "0") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=3) as client,
    ):
        endless = client.chat.completions.create(
            model="varco", messages=HELLO, stream=True, max_tokens=900, extra_body={"ignore_eos": True}
        )
        next(iter(endless))  # it has the only slot
        slept: list[float] = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            endless.close()
            monkeypatch.undo()
            until(lambda: server.metric("varco_answers_running") == 0)

        monkeypatch.setattr("openai._base_client.time.sleep", sleep)
        said = client.chat.completions.create(model="varco", messages=HELLO, max_tokens=2)
        assert said.choices[0].message.content
        assert slept == [1.0], "the time that Retry-After names"
