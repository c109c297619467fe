"""Bad requests to a real server: 400 in one line of OpenAI's envelope, nothing of our insides, and it goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.makers.requests import PIXEL, data_url, picture_part, text_part, user
from tests.makers.server import RunningServer

INSIDES = re.compile(
    r"/(usr|home|tmp|root|work|proc)/|site-packages|\.py\b|0x[0-9a-f]{6}|Traceback|varco_(serve|runtime)|\w+(Error|Exception)\b"
    r"|object at|onnx|llguidance|PIL|127\.0\.0\.1|localhost"
)
MESSAGES = '"messages": [{"role": "user", "content": "Hello"}]'
NUMBERS = ("NaN", "Infinity", "-Infinity", "1e309", "-1e309", "9223372036854775808", "1" + "0" * 5000)
FIELDS = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "n", "top_logprobs", "presence_penalty")


def showing(url: str) -> dict[str, Any]:
    return {"messages": [user(picture_part(url), text_part("What is this?"))]}


def saying(**fields: Any) -> dict[str, Any]:
    return {"messages": [user("Hello")], **fields}


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": value}}


NESTED = schema({"type": "string", "pattern": "^((((a{1,50}){1,50}){1,50}){1,50})$"})
"""Its beginning can be said; then its automaton is larger than the limits."""

TEXTS: dict[str, str] = {
    "no JSON": "hello",
    "half of it": '{"messages": [',
    "a list": "[]",
    "a text": '"hello"',
    "null": "null",
    "300 levels": f'{{{MESSAGES}, "x": {"[" * 300}{"]" * 300}}}',
    "300 levels of a schema": f'{{{MESSAGES}, "response_format": {"{" + chr(34) + "a" + chr(34) + ":"}' + "[" * 300,
    "100,000 levels": "[" * 100_000,
    "a lone surrogate": '{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "a lone surrogate as a name": f'{{{MESSAGES}, "\\udfff": 1}}',
    "a million parts": '{"messages": [{"role": "user", "content": [' + "{}," * 1_000_000 + "{}]}]}",
    "10,000 parts": '{"messages": [{"role": "user", "content": [' + "{}," * 10_000 + "{}]}]}",
    **{f"{name}: {number[:20]}": f'{{{MESSAGES}, "{name}": {number}}}' for name in FIELDS for number in NUMBERS},
    **{f"{name}: -1": f'{{{MESSAGES}, "{name}": -1}}' for name in FIELDS if name != "presence_penalty"},
}
DOCUMENTS: dict[str, dict[str, Any]] = {
    "http": showing("http://127.0.0.1:1/a.png"),
    "https": showing("https://example.com/a.png"),
    "file": showing("file:///etc/passwd"),
    "ftp": showing("ftp://example.com/a.png"),
    "two pictures": {"messages": [user(picture_part(), picture_part(), text_part("Compare."))]},
    "a picture in each of two turns": {
        "messages": [user(picture_part()), {"role": "assistant", "content": "a"}, user(picture_part())]
    },
    "audio": {"messages": [user({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}})]},
    "video": {"messages": [user({"type": "video_url", "video_url": {"url": data_url(b"x", "video/mp4")}})]},
    "a video as a picture": showing(data_url(b"\0\0\0\x18ftypmp42" + bytes(40), "video/mp4")),
    "bad base64": showing("data:image/png;base64,!!!!"),
    "base64 with line breaks": showing(data_url().replace("AAAA", "AA\nAA", 1)),
    "another type by name": showing(data_url(b"II*\0", "image/tiff")),
    "another type by its bytes": showing(data_url(b"II*\0" + bytes(40))),
    "SVG": showing(data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png")),
    "a bomb": showing(
        data_url(b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0" + b"\xff\xff\xff\x7f" * 2 + bytes(28), "image/bmp")
    ),
    "a truncated file": showing(data_url(PIXEL[:45])),
    "chat_template": saying(chat_template="{{ 7 * 7 }}"),
    "chat_template_kwargs": saying(chat_template_kwargs={"a": 1}),
    "a demanded tool": saying(tools=[{"type": "function"}], tool_choice="required"),
    "a named tool": saying(tools=[], tool_choice={"type": "function", "function": {"name": "f"}}),
    "prompt_logprobs": saying(prompt_logprobs=1),
    "a schema with a reference outside": saying(response_format=schema({"$ref": "http://example.com/a.json"})),
    "a schema of no type": saying(response_format=schema({"type": "thing"})),
    "a schema that explodes": saying(response_format=schema({"type": "integer", "multipleOf": 100_000_007})),
    "a schema that explodes later": saying(response_format=NESTED, max_tokens=50),
    "a schema that nothing fits": saying(response_format=schema({"not": {}})),
    "a schema that dies": saying(response_format=schema({"type": "string", "pattern": "a{9}$^b"}), max_tokens=9),
    "a text longer than the context": {"messages": [user("word " * 3000)]},
    "a text longer than any context": {"messages": [user("x" * 1_000_001)]},
}


@pytest.fixture(scope="module", autouse=True)
def goes_on(server: RunningServer) -> Iterator[None]:
    """The server's processes stay the same through all of it, and it answers afterwards."""
    before = server.pid, server.worker_pid, server.pictures_pid
    yield
    assert (server.pid, server.worker_pid, server.pictures_pid) == before
    assert server.chat("Hello", max_tokens=2).status_code == 200


def check(server: RunningServer, content: bytes) -> dict[str, Any]:
    got = server.client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert got.status_code == 400, got.text
    document: dict[str, Any] = got.json()
    assert set(document) == {"error"}
    error: dict[str, Any] = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    message = error["message"]
    assert message.isprintable()
    assert 10 < len(message) < 600
    assert not INSIDES.search(message), message
    return error


@pytest.mark.parametrize("name", TEXTS)
def test_a_body_that_is_no_request(server: RunningServer, name: str) -> None:
    error = check(server, TEXTS[name].encode())
    field = name.partition(":")[0]
    if field in FIELDS:
        assert error["param"] in (field, None)
        assert error["param"] == field or error["code"] == "invalid_json"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_request_that_is_refused_by_name(server: RunningServer, name: str) -> None:
    error = check(server, json.dumps(DOCUMENTS[name]).encode())
    assert error["param"], error


@pytest.mark.parametrize("name", ["chat_template", "https", "bad base64", "a schema of no type", "a truncated file"])
def test_a_stream_that_never_begins_is_refused_with_its_status(server: RunningServer, name: str) -> None:
    check(server, json.dumps(DOCUMENTS[name] | {"stream": True}).encode())


def test_a_grammar_that_fails_within_a_stream_is_an_error_event(server: RunningServer) -> None:
    got = server.post("/v1/chat/completions", **saying(response_format=NESTED, max_tokens=50, stream=True))
    assert got.status_code == 200
    last = json.loads(got.text.removesuffix("\n\n").rpartition("\n\n")[2].removeprefix("data: "))
    assert last["error"]["param"] == "response_format"
    assert not INSIDES.search(last["error"]["message"])
