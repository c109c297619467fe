"""The door: targets, hosts, origins and keys."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from tests.doubles.front import client, exchange, front, listening
from tests.doubles.model import ScriptedModel

KEY = "correct horse battery staple"
KEYS = (hashlib.sha256(b"another").digest(), hashlib.sha256(KEY.encode()).digest())
CHAT = {"model": "varco", "messages": [{"role": "user", "content": "Hello"}]}


def ask(path: str, method: str = "GET", *, headers: dict[str, str] | None = None, **options: Any) -> tuple[int, Any]:
    """Return the status and the document that a server with these options answers."""

    async def asking() -> tuple[int, Any]:
        async with client(front(ScriptedModel(), **options)) as caller:
            answer = await caller.request(method, path, headers=headers)
            return answer.status_code, answer.json() if answer.content else None

    return asyncio.run(asking())


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("x/?", 400),
        ("x@localhost", 400),
        ("localhost:8000:9", 400),
        ("localhost:123456", 400),
        ("", 400),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("10.0.0.5", 403),
    ],
)
def test_only_the_names_of_this_server_are_answered_to(host: str, status: int) -> None:
    assert ask("/v1/models", headers={"host": host})[0] == status


def test_a_server_for_other_machines_answers_to_its_addresses_and_to_the_names_it_was_given() -> None:
    options: dict[str, Any] = {"host": "0.0.0.0", "keys": KEYS, "allowed_hosts": ("varco.example",)}
    for host, status in (("10.0.0.5:8000", 200), ("varco.example", 200), ("evil.example", 403)):
        assert ask("/health", headers={"host": host}, **options)[0] == status


@pytest.mark.parametrize("allowed", ["varco.example", "Varco.Example:8443"])
def test_a_name_is_allowed_at_any_port(allowed: str) -> None:
    for host in ("varco.example", "varco.example:443"):
        assert ask("/health", headers={"host": host}, allowed_hosts=(allowed,))[0] == 200
    assert ask("/health", headers={"host": "[fe80::1]:80"}, allowed_hosts=("[fe80::1]",))[0] == 200


@pytest.mark.parametrize("target", ["http://localhost/v1/models", "*", "localhost:80"])
def test_a_target_that_is_no_path_is_refused(target: str) -> None:
    async def asking() -> bytes:
        async with listening(front(ScriptedModel())) as port:
            request = f"GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            return await exchange(port, request.encode())

    assert asyncio.run(asking()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9", "http://localhost"])
def test_a_page_of_another_site_is_refused(origin: str) -> None:
    for method, path in (("GET", "/health"), ("POST", "/v1/chat/completions"), ("OPTIONS", "/v1/models")):
        status, document = ask(path, method, headers={"origin": origin, "access-control-request-method": "POST"})
        assert (status, document["error"]["code"]) == (403, "origin_not_allowed")


def test_a_page_of_the_server_itself_and_of_an_allowed_origin_may_ask() -> None:
    async def asking() -> None:
        app = front(ScriptedModel(), keys=KEYS, cors=("https://chat.example",))
        async with client(app) as caller:
            own = await caller.get("/health", headers={"origin": "http://localhost:8000"})
            assert own.status_code == 200
            assert "access-control-allow-origin" not in own.headers
            page = {"origin": "https://chat.example"}
            before = await caller.options(
                "/v1/chat/completions",
                headers={
                    **page,
                    "access-control-request-method": "POST",
                    "access-control-request-headers": "authorization,content-type,x-stainless-os",
                },
            )
            assert before.status_code == 204
            assert before.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-os"
            refused = await caller.post("/v1/chat/completions", json=CHAT, headers=page)
            asked = await caller.post(
                "/v1/chat/completions", json=CHAT, headers={**page, "authorization": f"Bearer {KEY}"}
            )
            for answer, status in ((before, 204), (refused, 401), (asked, 200)):
                assert answer.status_code == status
                assert answer.headers["access-control-allow-origin"] == "https://chat.example"

    asyncio.run(asking())


PATHS = ("/v1/models", "/v1/metadata", "/metrics", "/openapi.json", "/v1/chat/completions", "/v1/ocr", "/", "/unknown")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer "},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": f"Bearer {KEY.upper()}"},
        {"x-api-key": KEY},
    ],
)
def test_no_route_and_no_method_answers_without_the_right_key(headers: dict[str, str]) -> None:
    async def asking() -> None:
        model = ScriptedModel()
        async with client(front(model, keys=KEYS)) as caller:
            for path in (*PATHS, "//health", "/health/", "/health/x", "/HEALTH", "/v1/ocr?" + "a&" * 200):
                for method in METHODS:
                    answer = await caller.request(method, path, headers=headers)
                    assert answer.status_code == 401, (method, path)
                    assert answer.headers["www-authenticate"] == "Bearer"
        assert not model.asks

    asyncio.run(asking())


def test_the_health_routes_ask_for_no_key_and_the_others_take_any_of_the_keys() -> None:
    for path in ("/health", "/health/live", "/health/ready"):
        assert ask(path, keys=KEYS)[0] == 200
    for key in (KEY, "another"):
        assert ask("/v1/models", keys=KEYS, headers={"authorization": f"bearer {key}"})[0] == 200


@pytest.mark.parametrize("name", ["key", "api_key", "API-KEY", "access_token", "token"])
def test_a_key_in_the_address_is_refused_even_beside_the_right_one(name: str) -> None:
    status, document = ask(f"/v1/models?{name}=x", headers={"authorization": f"Bearer {KEY}"}, keys=KEYS)
    assert status == 401
    assert "address" in document["error"]["message"]


def test_two_keys_are_none() -> None:
    async def asking() -> bytes:
        async with listening(front(ScriptedModel(), keys=KEYS)) as port:
            field = f"authorization: Bearer {KEY}\r\n"
            request = f"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{field}{field}\r\n"
            return await exchange(port, request.encode())

    assert asyncio.run(asking()).startswith(b"HTTP/1.1 401 ")
