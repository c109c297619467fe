"""Whatever JSON comes: a request that was checked, or a `RequestError` of one short line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.makers.requests import chat_request, data_url, picture_part, text_part, user
from varco_serve.documents.chat import ChatRequest, Limits, parse_chat
from varco_serve.documents.errors import RequestError, envelope
from varco_serve.documents.native import TASKS, NativeRequest, parse_native
from varco_serve.documents.unsupported import IN_CHAT, IN_NATIVE

LIMITS = Limits("varco", 2)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([1 << 63, -1, 10**400])
    | st.floats()
    | st.text(st.characters(codec=None))
    | st.sampled_from(
        ["user", "text", "image_url", "system", "auto", "json_schema", data_url(), "data:image/png;base64,"]
    )
)
NAMES = st.sampled_from(
    sorted(
        {
            *("model", "messages", "role", "content", "type", "text", "image_url", "url", "detail", "name", "tools"),
            *("max_tokens", "temperature", "top_p", "seed", "stop", "n", "logprobs", "top_logprobs", "logit_bias"),
            *("stream", "stream_options", "include_usage", "response_format", "json_schema", "schema", "tool_choice"),
            *("image", "prompt", "box", "strict", "format", "system"),
            *IN_CHAT,
            *IN_NATIVE,
        }
    )
) | st.text(st.characters(codec=None), max_size=5)
JSON: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=20,
)
FEW = settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


def check_refusal(error: RequestError) -> None:
    status, document, _ = envelope(error)
    assert status in (400, 404)
    text = document["error"]["message"]
    assert text.isprintable(), "a line of the caller's own making"
    assert len(text) < 600
    assert not re.search(
        r"/(usr|home|tmp)/|site-packages|\.py\b|0x[0-9a-f]{6}|Traceback|varco_|Error\b|object at", text
    )
    json.dumps(document, allow_nan=False).encode()


def check(parse: Callable[[], ChatRequest | NativeRequest]) -> ChatRequest | None:
    try:
        request = parse()
    except RequestError as error:
        check_refusal(error)
        return None
    assert sum(map(len, request.pictures)) <= 1 << 16
    text = json.dumps([request.options, request.grammar, *([turn.role, turn.parts] for turn in request.turns)])
    json.loads(text)
    assert all(name.isascii() and name.isprintable() for name in request.ignored)
    return request if isinstance(request, ChatRequest) else None


@FEW
@given(JSON)
def test_any_json_at_all(document: Any) -> None:
    check(lambda: parse_chat(document, LIMITS))


@FEW
@given(NAMES, JSON)
def test_any_value_of_any_field(name: str, value: Any) -> None:
    check(lambda: parse_chat(chat_request() | {name: value}, LIMITS))


@FEW
@given(st.lists(JSON, min_size=1, max_size=4))
def test_any_messages(messages: list[Any]) -> None:
    check(lambda: parse_chat(chat_request(messages=messages), LIMITS))


@FEW
@given(st.lists(JSON | st.builds(text_part, st.text()) | st.builds(picture_part, st.text() | st.just(data_url()))))
def test_any_parts(parts: list[Any]) -> None:
    request = check(lambda: parse_chat(chat_request({"role": "user", "content": parts}), LIMITS))
    if request is not None:
        indices = [part for part in request.turns[0].parts if isinstance(part, int)]
        assert indices == list(range(len(request.pictures)))


@FEW
@given(JSON)
def test_any_response_format(value: Any) -> None:
    check(lambda: parse_chat(chat_request(response_format={"type": "json_schema", "json_schema": value}), LIMITS))


@FEW
@given(st.sampled_from(TASKS), st.dictionaries(NAMES, st.text(), max_size=5), JSON)
def test_any_native_request(task: str, query: dict[str, str], document: Any) -> None:
    check(lambda: parse_native(task, query, "application/json", document))
    check(lambda: parse_native(task, query, "application/json", {"image": data_url(), "a": document}))
    check(lambda: parse_native(task, query, "image/png", b"x"))


@pytest.mark.full
@settings(FEW, max_examples=2_000)
@given(JSON, NAMES, JSON)
def test_any_request_at_length(document: Any, name: str, value: Any) -> None:
    check(lambda: parse_chat(document, LIMITS))
    check(lambda: parse_chat(chat_request(user("a")) | {name: value}, LIMITS))
    check(lambda: parse_native(TASKS[len(name) % 3], {}, "application/json", {"image": data_url(), name: value}))
