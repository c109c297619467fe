"""Pictures are decoded shortly before their turn, in the order in which they came."""

from __future__ import annotations

import asyncio
import contextlib

import httpx

from tests.doubles.front import client, front
from tests.doubles.model import FACTS, PICTURE, ScriptedModel, answer
from varco_serve.front.decoding import AHEAD
from varco_serve.messages import Failed

PNG = {"content-type": "image/png"}
CHAT = {"model": "varco", "messages": [{"role": "user", "content": "Hello"}]}
MOST = FACTS.slots + AHEAD


async def settled() -> None:
    """Let everything go on that can."""
    for _ in range(50):
        await asyncio.sleep(0)


def gated(gates: list[asyncio.Event]) -> ScriptedModel:
    """A model whose answers get their places one by one."""
    return ScriptedModel(lambda ask, number: [gates[number], *answer("Hello", picture=PICTURE)])


async def _ask(caller: httpx.AsyncClient, name: str) -> int:
    return (await caller.post("/v1/ocr", content=name.encode(), headers=PNG)).status_code


def test_no_more_pictures_are_decoded_than_will_soon_be_looked_at() -> None:
    async def asking() -> None:
        gates = [asyncio.Event() for _ in range(MOST + 4)]
        model = gated(gates)
        async with client(front(model)) as caller:
            tasks = []
            for number in range(MOST + 3):
                tasks.append(asyncio.ensure_future(_ask(caller, str(number))))
                await settled()
            assert model.decoded == [str(number).encode() for number in range(MOST)]
            assert model.num_running == MOST
            metrics = (await caller.get("/metrics")).text
            assert f"varco_answers_waiting {MOST + 3}.0" in metrics
            gates[0].set()
            await settled()
            assert model.decoded[MOST:] == [str(MOST).encode()]
            text = asyncio.ensure_future(caller.post("/v1/chat/completions", json=CHAT))
            await settled()
            assert model.num_running == MOST + 1  # what has no picture waits for none
            for gate in gates:
                gate.set()
            assert await asyncio.gather(*tasks) == [200] * (MOST + 3)
            assert (await text).status_code == 200

    asyncio.run(asyncio.wait_for(asking(), 30))


def test_turns_of_those_who_fail_or_leave_go_to_the_next() -> None:
    async def asking() -> None:
        never = [asyncio.Event() for _ in range(100)]
        model = gated(never)
        async with client(front(model)) as caller:
            model.pixels, pixels = Failed(400, "Damaged.", "invalid_image"), model.pixels
            assert [await _ask(caller, "x") for _ in range(MOST + 1)] == [400] * (MOST + 1)
            model.pixels = pixels
            for _ in range(2):
                tasks = [asyncio.ensure_future(_ask(caller, "y")) for _ in range(MOST + 2)]
                await settled()
                assert model.num_running == MOST
                for task in tasks:
                    task.cancel()
                for task in tasks:
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
                assert model.num_running == 0

    asyncio.run(asyncio.wait_for(asking(), 30))


def test_who_waits_too_long_for_its_turn_is_told_to_ask_again() -> None:
    async def asking() -> httpx.Response:
        model = gated([asyncio.Event() for _ in range(100)])
        async with client(front(model, queue_timeout_s=0.05)) as caller:
            tasks = [asyncio.ensure_future(_ask(caller, "x")) for _ in range(MOST)]
            await settled()
            late = await caller.post("/v1/ocr", content=b"x", headers=PNG)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return late

    response = asyncio.run(asyncio.wait_for(asking(), 30))
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "queue_timeout"
    assert response.headers["retry-after"] == "10"
