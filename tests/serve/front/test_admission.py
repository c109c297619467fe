"""Too many questions: told so at once, before pictures are decoded."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.doubles.front import client, front
from tests.doubles.model import FACTS, ScriptedModel, answer
from varco_serve.messages import Ask

CHAT = {"model": "varco", "messages": [{"role": "user", "content": "Hello"}]}
PNG = {"content-type": "image/png"}


def test_more_than_may_run_and_wait_are_refused_at_once_and_the_others_answered() -> None:
    gate = asyncio.Event()

    def script(ask: Ask, number: int) -> list[Any]:
        return [gate, *answer("Hello")]

    async def asking() -> None:
        model = ScriptedModel(script)
        async with client(front(model, max_queue=3)) as caller:
            most = FACTS.slots + 3
            waiting = [asyncio.ensure_future(caller.post("/v1/chat/completions", json=CHAT)) for _ in range(most)]
            while model.num_running < most:
                await asyncio.sleep(0)
            refused = await caller.post("/v1/chat/completions", json=CHAT)
            picture = await caller.post("/v1/ocr", content=b"x", headers=PNG)
            for response in (refused, picture):
                assert response.status_code == 429
                assert response.headers["retry-after"] == "1"
                assert response.json()["error"]["code"] == "queue_full"
            assert not model.decoded
            gate.set()
            assert [(await one).status_code for one in waiting] == [200] * most
            assert (await caller.post("/v1/chat/completions", json=CHAT)).status_code == 200

    asyncio.run(asyncio.wait_for(asking(), 30))


def test_several_answers_take_as_many_places() -> None:
    async def asking() -> list[int]:
        async with client(front(ScriptedModel(), max_queue=1)) as caller:
            return [
                (await caller.post("/v1/chat/completions", json={**CHAT, "n": n})).status_code
                for n in (FACTS.slots + 1, FACTS.slots + 2, FACTS.slots + 1)
            ]

    # More than may ever run and wait: a 429 would be asked again for ever.
    assert asyncio.run(asking()) == [200, 400, 200]


def test_a_refusal_says_how_many_answers_there_are() -> None:
    gate = asyncio.Event()

    async def asking() -> None:
        model = ScriptedModel(lambda ask, number: [gate, *answer("Hello")])
        async with client(front(model, max_queue=1)) as caller:
            waiting = asyncio.ensure_future(caller.post("/v1/chat/completions", json={**CHAT, "n": 2}))
            while model.num_running < 2:
                await asyncio.sleep(0)
            refused = await caller.post("/v1/chat/completions", json={**CHAT, "n": 2})
            assert refused.status_code == 429
            message = refused.json()["error"]["message"]  # one of the two has had its place
            assert message.startswith("There is no room for 1 more: 3 answers run or wait, at most 3 may.")
            gate.set()
            assert (await waiting).status_code == 200

    asyncio.run(asyncio.wait_for(asking(), 30))


def test_places_of_refused_requests_are_given_back() -> None:
    async def asking() -> list[int]:
        async with client(front(ScriptedModel(), max_queue=0)) as caller:
            bad = [await caller.post("/v1/chat/completions", json={**CHAT, "n": 0}) for _ in range(5)]
            return [response.status_code for response in (*bad, await caller.post("/v1/chat/completions", json=CHAT))]

    assert asyncio.run(asking()) == [400] * 5 + [200]
