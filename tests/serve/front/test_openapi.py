"""`/openapi.json` says every status that its routes answer, and no other."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

from tests.doubles.front import client, front
from tests.doubles.model import ScriptedModel
from varco_serve.front.limits import FrontLimits
from varco_serve.front.openapi import openapi
from varco_serve.messages import Failed

KEY = {"authorization": "Bearer key"}
KEYS = (hashlib.sha256(b"key").digest(),)
CHAT = {"model": "varco", "messages": [{"role": "user", "content": "Hello"}]}
JSON = {"content-type": "application/json"}
PNG = {"content-type": "image/png"}
QUERIES = {"/v1/ground": "?prompt=Describe", "/v1/refer": "?prompt={object}&text=it&box=0,0,1,1"}
Answers = set[tuple[str, str, int]]


def documented(document: dict[str, Any]) -> Answers:
    return {
        (path, method, int(status))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        for status in operation["responses"]
    }


class Asker:
    """Asks every route in every way that has a status of its own, and notes what it was answered."""

    def __init__(self) -> None:
        self.answers: Answers = set()

    async def ask(
        self,
        path: str,
        method: str,
        *,
        headers: dict[str, str],
        content: bytes | AsyncIterator[bytes] = b"",
        model: ScriptedModel | None = None,
        limits: FrontLimits | None = None,
        request_timeout_s: float = 60.0,
    ) -> None:
        app = front(model or ScriptedModel(), limits, keys=KEYS, request_timeout_s=request_timeout_s)
        async with client(app) as caller:
            target = path + QUERIES.get(path, "")
            answer = await caller.request(method.upper(), target, headers=headers, content=content)
        self.answers.add((path, method, answer.status_code))
        check_is_documented(answer, path, method)

    async def everything(self, paths: dict[str, Any]) -> None:
        for path, operations in paths.items():
            for method in operations:
                await self._door(path, method)
                await self._readiness(path, method)
                if method == "post":
                    await self._asking(path)

    async def _door(self, path: str, method: str) -> None:
        for headers in (
            KEY,
            {},
            {**KEY, "host": "x/?"},
            {**KEY, "host": "evil.example"},
        ):
            await self.ask(path, method, headers=headers)

    async def _readiness(self, path: str, method: str) -> None:
        model = ScriptedModel()
        model.facts, model.not_ready = None, "loading"
        await self.ask(path, method, headers={**KEY, **JSON}, model=model)

    async def _asking(self, path: str) -> None:
        is_chat = path.endswith("completions")
        headers = {**KEY, **(JSON if is_chat else PNG)}
        body = json.dumps(CHAT).encode() if is_chat else b"\x89PNG"
        slow = dataclasses.replace(FrontLimits(), body_s=0.01)
        short = dataclasses.replace(FrontLimits(), max_body_bytes=3)
        await self.ask(path, "post", headers=headers, content=body)
        await self.ask(path, "post", headers={**KEY, **JSON}, content=b"{")
        await self.ask(path, "post", headers=headers, content=_endless(), limits=slow)
        await self.ask(path, "post", headers=headers, content=body, limits=short)
        await self.ask(path, "post", headers={**KEY, "content-type": "text/plain"}, content=body)
        for script in ([Failed(429, "Full.", retry_after_s=1.0)], [ValueError()], [Failed(503, "x")]):
            await self.ask(path, "post", headers=headers, content=body, model=ScriptedModel(script))  # type: ignore[arg-type]
        await self.ask(
            path,
            "post",
            headers=headers,
            content=body,
            model=ScriptedModel(lambda ask, number: [asyncio.Event()]),
            request_timeout_s=0.01,
        )
        if is_chat:
            unknown = json.dumps({**CHAT, "model": "unknown"}).encode()
            await self.ask(path, "post", headers=headers, content=unknown)


async def _endless() -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.Event().wait()


def check_is_documented(answer: httpx.Response, path: str, method: str) -> None:
    """Check an answer's kind, and the names of its error's fields."""
    responses = openapi("0", has_keys=True)["paths"][path][method]["responses"]
    kinds = responses[str(answer.status_code)]["content"]
    assert answer.headers["content-type"].partition(";")[0] in kinds
    if answer.status_code >= 400 and not path.startswith("/health"):
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert "\n" not in answer.json()["error"]["message"]


def test_every_documented_status_is_answered_and_every_answer_documented() -> None:
    asker = Asker()
    document = openapi("0", has_keys=True)
    asyncio.run(asker.everything(document["paths"]))
    assert asker.answers == documented(document)


def test_every_route_is_documented_and_served() -> None:
    async def served() -> tuple[dict[str, Any], list[int]]:
        async with client(front(ScriptedModel())) as caller:
            document = (await caller.get("/openapi.json")).json()
            return document, [(await caller.request("BREW", path)).status_code for path in document["paths"]]

    document, statuses = asyncio.run(served())
    assert set(statuses) == {405}
    assert document["info"]["version"]
    routes = set(front(ScriptedModel()).paths)
    assert set(document["paths"]) == routes


def test_keys_are_documented_where_they_are_asked_for() -> None:
    without = openapi("0", has_keys=False)
    assert not any(status == 401 for _, _, status in documented(without))
    assert "security" not in json.dumps(without)
    with_keys = openapi("0", has_keys=True)
    asked = {path for path, method, status in documented(with_keys) if status == 401}
    assert asked == {path for path in with_keys["paths"] if not path.startswith("/health")}
