"""The supervisor with a real worker: what it answers, in which order, and what it does about deaths."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import aclosing, suppress
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.makers.server import DEMO_BUNDLE, until
from tests.makers.supervised import Supervised, end_of, events_of, question
from varco_runtime import Varco
from varco_runtime.markup.questions import OCR_PROMPT
from varco_serve.messages import Ask, AskTurn, Begun, Done, Failed, Pixels, Said
from varco_serve.supervisor.supervisor import EndedError

ENDLESS = {"ignore_eos": True, "max_new_tokens": 900}
WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9, "seed": 7, "top_k": 20},
    {"presence_penalty": 1.5, "max_new_tokens": 12},
    {"top_logprobs": 2, "max_new_tokens": 6},
    {"stop": ["e"]},
    {"ignore_eos": True, "max_new_tokens": 30},
]


def pixels(seed: int, width: int = 64, height: int = 48) -> Pixels:
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Pixels(width, height, array.tobytes())


def image(one: Pixels) -> Image.Image:
    return Image.frombytes("RGB", (one.width, one.height), one.rgb)


@pytest.fixture(scope="module")
def supervised() -> Iterator[Supervised]:
    with Supervised() as supervised:
        yield supervised


@pytest.fixture(scope="module")
def varco() -> Varco:
    return Varco.load(DEMO_BUNDLE, provider="cpu", threads=1)


def test_answers_are_those_of_the_library_alone_and_beside_each_other(supervised: Supervised, varco: Varco) -> None:
    shown = [pixels(seed) for seed in range(3)]
    asked = [(OCR_PROMPT if index % 2 else "What is this?", shown[index % 3], way) for index, way in enumerate(WAYS)]
    expected = [varco.ask(image(one), prompt, **way) for prompt, one, way in asked]

    def check(all_events: list[list[Any]]) -> None:
        for events, answer in zip(all_events, expected, strict=True):
            assert isinstance(events[0], Begun)
            assert events[0].prompt_tokens == answer.usage.prompt_tokens
            document = end_of(events).document
            alone = answer.to_dict()
            for name in ("text", "plain_text", "token_ids", "regions", "warnings", "finish_reason", "media"):
                assert document[name] == alone[name]
            said = [event for event in events if isinstance(event, Said)]
            assert "".join(one.text for one in said) == answer.text
            assert [region for one in said for region in one.regions] == alone["regions"]
            scores = [token for one in said for token in one.tokens]
            assert [token.token_id for token in scores] == [token.token_id for token in answer.tokens]

    asks = [question(prompt, one, **way) for prompt, one, way in asked]
    check([supervised.events(ask) for ask in asks])

    async def together() -> list[list[Any]]:
        return await asyncio.gather(*(events_of(supervised.supervisor, ask) for ask in asks))

    check(supervised.run(together()))


def test_a_conversation_with_history_is_answered_as_chat_does(supervised: Supervised, varco: Varco) -> None:
    shown = pixels(9)
    chat = varco.chat(image(shown), system="Be brief.")
    first = chat.ask("What is this?")
    second = chat.ask("And now?")
    turns = (
        AskTurn("system", ("Be brief.",)),
        AskTurn("user", (0, "What is this?")),
        AskTurn("assistant", (first.text,)),
        AskTurn("user", ("And now?",)),
    )
    assert end_of(supervised.events(Ask(turns, (shown,)))).document["token_ids"] == list(second.token_ids)


def test_an_animation_is_said_to_be_one(supervised: Supervised) -> None:
    shown = pixels(3)
    moving = Pixels(shown.width, shown.height, shown.rgb, is_animated=True)
    warnings = end_of(supervised.events(question("What?", moving))).document["warnings"]
    assert any("animation" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (question("x " * 5000), "context_length_exceeded"),
        (question("Hi", temperature=-1.0), "invalid_value"),
        (question("Hi", logit_bias={"99999999": 1.0}), "invalid_value"),
        (question("Hi", *(pixels(seed) for seed in range(9))), "invalid_image"),
    ],
    ids=["too long", "temperature", "bias", "pictures"],
)
def test_what_cannot_be_asked_is_refused_by_the_worker_in_one_line(supervised: Supervised, ask: Ask, code: str) -> None:
    failed = end_of(supervised.events(ask))
    assert isinstance(failed, Failed)
    assert (failed.status, failed.code) == (400, code)
    for word in ("\n", "/", "Error", "max_context", "--", "varco run", "Varco"):
        assert word not in failed.message
    assert isinstance(end_of(supervised.events(question("Hi"))), Done)


def test_a_cancelled_answer_frees_its_slot(supervised: Supervised) -> None:
    async def cancel_after(num_events: int) -> None:
        async with aclosing(supervised.supervisor.ask(question("Hi", **ENDLESS))) as events:
            for _ in range(num_events):
                await anext(events)

    for num_events in (1, 2, 5) * 8:
        supervised.run(cancel_after(num_events))
    until(lambda: supervised.supervisor.stats.running == 0)
    assert supervised.supervisor.stats.waiting == 0
    assert isinstance(end_of(supervised.events(question("Hi"))), Done)


def test_asks_are_answered_in_their_order_and_a_full_queue_refuses_at_once() -> None:
    with Supervised(slots=1, max_queue=2) as supervised:
        order: list[int] = []

        async def ask(number: int) -> list[Any]:
            events = await events_of(supervised.supervisor, question("Hi", max_new_tokens=3))
            order.append(number)
            return events

        async def all_of_them() -> list[list[Any]]:
            async with aclosing(supervised.supervisor.ask(question("Hi", **ENDLESS))) as first:
                await anext(first)
                asking = [asyncio.create_task(ask(number)) for number in range(2)]
                await asyncio.sleep(0)
                refused = await events_of(supervised.supervisor, question("Hi"))
            return [refused, *await asyncio.gather(*asking)]

        refused, *others = supervised.run(all_of_them())
        failed = end_of(refused)
        assert isinstance(failed, Failed)
        assert (failed.status, failed.code) == (429, "queue_full")
        assert failed.retry_after_s
        assert all(isinstance(end_of(events), Done) for events in others)
        assert order == [0, 1]


def test_a_question_waits_no_longer_than_the_queue_allows() -> None:
    with Supervised(slots=1, queue_timeout_s=0.05) as supervised:

        async def beside_an_endless_one() -> list[Any]:
            async with aclosing(supervised.supervisor.ask(question("Hi", **ENDLESS))) as first:
                await anext(first)
                return await events_of(supervised.supervisor, question("Hi"))

        failed = end_of(supervised.run(beside_an_endless_one()))
        assert isinstance(failed, Failed)
        assert (failed.status, failed.code) == (503, "queue_timeout")
        assert isinstance(end_of(supervised.events(question("Hi", max_new_tokens=1))), Done)


def test_a_killed_worker_loses_what_it_was_saying_and_nothing_else() -> None:
    with Supervised(slots=1) as supervised:

        async def kill_beside_a_waiting_one() -> tuple[list[Any], list[Any]]:
            running = asyncio.create_task(events_of(supervised.supervisor, question("Hi", **ENDLESS)))
            while supervised.supervisor.stats.running == 0:
                await asyncio.sleep(0.001)
            waiting = asyncio.create_task(events_of(supervised.supervisor, question("Hi")))
            await asyncio.sleep(0)
            assert supervised.supervisor.worker_pid is not None
            os.kill(supervised.supervisor.worker_pid, signal.SIGKILL)
            return await running, await waiting

        lost, answered = supervised.run(kill_beside_a_waiting_one())
        failed = end_of(lost)
        assert isinstance(failed, Failed)
        assert (failed.status, failed.code) == (503, "worker_lost")
        assert failed.retry_after_s
        assert isinstance(end_of(answered), Done)
        assert supervised.supervisor.not_ready is None
        assert supervised.supervisor.stats.restarts == 1
        died = [fields for event, fields in supervised.log if event == "worker_died"]
        assert [fields["status"] for fields in died] == [-signal.SIGKILL]


def test_a_worker_that_keeps_dying_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varco_serve.supervisor.deaths.FIRST_WAIT_S", 0.0)
    monkeypatch.setattr("varco_serve.supervisor.deaths.LONGEST_WAIT_S", 0.0)
    with Supervised(slots=1) as supervised:

        async def until_ended() -> tuple[BaseException | None, list[Any]]:
            waiting = asyncio.create_task(events_of(supervised.supervisor, question("Hi", **ENDLESS)))
            while not supervised.running.done():
                if (pid := supervised.supervisor.worker_pid) is not None:
                    with suppress(ProcessLookupError):  # it has been waited for a moment ago
                        os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(0.01)
            return supervised.running.exception(), await waiting

        error, events = supervised.run(until_ended())
        assert isinstance(error, EndedError)
        assert error.status == 1
        assert isinstance(end_of(events), Failed)
        assert sum(event == "worker_died" for event, _ in supervised.log) == 5
        assert supervised.supervisor.worker_pid is None


def test_a_bundle_that_cannot_be_loaded_ends_the_server_with_its_line(tmp_path: Any) -> None:
    with Supervised(bundle=tmp_path) as supervised:
        error = supervised.running.exception()
        assert isinstance(error, EndedError)
        assert error.status == 1
        assert "bundle.json" in str(error)
