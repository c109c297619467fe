"""What Prometheus reads."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.doubles.front import client, front
from tests.doubles.model import ScriptedModel, answer
from varco_serve.messages import Begun, Failed

CHAT = {"model": "varco", "messages": [{"role": "user", "content": "Hello"}]}


def values_of(text: str) -> dict[str, float]:
    """Return the values by their names and labels."""
    return {
        sample.name + "".join(f" {name}={label}" for name, label in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }


async def read(caller: Any) -> dict[str, float]:
    response = await caller.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return values_of(response.text)


def test_an_answer_is_counted_with_its_tokens_and_times() -> None:
    async def asking() -> dict[str, float]:
        async with client(front(ScriptedModel(answer("a", "b", "c")))) as caller:
            for stream in (True, False):
                await caller.post("/v1/chat/completions", json={**CHAT, "stream": stream})
            return await read(caller)

    values = asyncio.run(asking())
    assert values["varco_prompt_tokens_total"] == 14
    assert values["varco_completion_tokens_total"] == 6
    assert values["varco_prefix_cache_hit_tokens_total"] == 6
    assert values["varco_time_to_first_token_seconds_count"] == 2
    assert values["varco_time_between_tokens_seconds_count"] == 4
    assert values["varco_queue_seconds_count"] == 2
    assert values["varco_prefill_seconds_sum"] == 0.5
    assert values["varco_decode_seconds_sum"] == 1.0
    assert values["varco_requests_total route=/v1/chat/completions status=200"] == 2
    assert not any("_created" in name for name in values)
    assert (values["varco_answers_running"], values["varco_answers_waiting"]) == (0, 0)


def test_the_processes_numbers_are_read_when_they_are_asked_for() -> None:
    async def asking(model: ScriptedModel) -> dict[str, float]:
        async with client(front(model)) as caller:
            return await read(caller)

    model = ScriptedModel()
    values = asyncio.run(asking(model))
    assert (values["varco_kv_tokens"], values["varco_kv_tokens_max"], values["varco_slots"]) == (30, 100, 2)
    assert (values["varco_picture_cache_hits_total"], values["varco_picture_cache_misses_total"]) == (5, 2)
    assert (values["varco_restarts_total"], values["varco_ready"]) == (1, 1)
    model.facts, model.not_ready = None, "loading"
    values = asyncio.run(asking(model))
    assert (values["varco_slots"], values["varco_ready"]) == (0, 0)


def test_answers_that_wait_and_that_run_are_told_apart() -> None:
    async def asking() -> None:
        place, end = asyncio.Event(), asyncio.Event()
        async with client(front(ScriptedModel([place, Begun(7), end, *answer("x")[1:]]))) as caller:
            asked = asyncio.ensure_future(caller.post("/v1/chat/completions", json={**CHAT, "n": 1}))
            for waiting, running, event in ((1, 0, place), (0, 1, end), (0, 0, None)):
                while True:
                    values = await read(caller)
                    if (values["varco_answers_waiting"], values["varco_answers_running"]) == (waiting, running):
                        break
                    await asyncio.sleep(0)
                if event is not None:
                    event.set()
            assert (await asked).status_code == 200

    asyncio.run(asyncio.wait_for(asking(), 30))


def test_what_is_refused_is_counted_by_its_reason() -> None:
    async def asking() -> dict[str, float]:
        async with client(front(ScriptedModel([Failed(429, "Full.", code="queue_full")]))) as caller:
            await caller.post("/v1/chat/completions", json=CHAT)
            await caller.post("/v1/chat/completions", json={**CHAT, "stream": True})
            await caller.get("/somewhere/else")
            await caller.post("/v1/chat/completions", json={**CHAT, "n": 0})
            return await read(caller)

    values = asyncio.run(asking())
    assert values["varco_refusals_total reason=queue_full"] == 2
    assert values["varco_refusals_total reason=not_found"] == 1
    assert values["varco_refusals_total reason=invalid_request_error"] == 1  # where OpenAI has no shorter name for it
    assert values["varco_requests_total route=none status=404"] == 1
    assert (values["varco_answers_running"], values["varco_answers_waiting"]) == (0, 0)
    assert not any("somewhere" in name for name in values)
