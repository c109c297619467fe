"""Constrained answers over HTTP: those of the library, refused by name, dying alone, in every slot beside others."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.makers.requests import user
from tests.makers.server import DEMO_BUNDLE, RunningServer
from varco_cli.commands.demo import draw_sign
from varco_runtime import Varco
from varco_runtime.answer.answer import Answer
from varco_runtime.markup.questions import OCR_PROMPT
from varco_serve.grammar.grammars import Grammars


def closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False
    }  # fmt: skip


PAGE = closed(
    words={"type": "array", "items": {"enum": ["EXIT", "서울", "cat"]}, "minItems": 1, "maxItems": 3},
    kind={"enum": ["sign", "photo"]},
    note={"type": "string", "maxLength": 6},
)
DIES = closed(kind={"enum": ["sign", "photo"]}, note={"type": "string", "pattern": "^(([a-z]{1,50}){1,50}){1,50}$"})
"""It can be begun, and takes more than the library's limits some twenty tokens later."""


def form(document: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "page", "schema": document}}


@pytest.fixture(scope="module")
def varco() -> Varco:
    return Varco.load(DEMO_BUNDLE, provider="cpu", threads=1)


@pytest.fixture(scope="module")
def hold(varco: Varco) -> Callable[..., Answer]:
    """Ask the library for an answer that is held to a grammar."""
    manifest = varco.bundle.manifest
    grammars = Grammars(varco.session.tokenizer, manifest.generation.eos_token_ids, manifest.model.vocab_size)
    return lambda image, prompt, grammar, **options: varco.ask(
        image, prompt, constraint=grammars.constraint(grammar), **options
    )


@pytest.fixture(scope="module")
def sign() -> bytes:
    file = io.BytesIO()
    draw_sign()[0].save(file, "PNG")
    return file.getvalue()


def streamed(server: RunningServer, content: Any, **fields: Any) -> list[dict[str, Any]]:
    """Return the chunks of a stream, without its end."""
    document = {"messages": [user(content)], "stream": True, **fields}
    with server.client.stream("POST", "/v1/chat/completions", json=document) as got:
        assert got.status_code == 200
        lines = [line.removeprefix("data: ") for line in got.iter_lines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("ways", [{}, {"temperature": 1.5, "seed": 3}, {"presence_penalty": 1.5}], ids=str)
def test_an_answer_by_a_schema_is_that_of_the_library(
    server: RunningServer, hold: Callable[..., Answer], ways: dict[str, Any]
) -> None:
    expected = hold(None, "Hello", {"kind": "json_schema", "schema": PAGE}, max_new_tokens=100, **ways)
    page = json.loads(expected.text)
    assert set(page["words"]) <= {"EXIT", "서울", "cat"}
    whole = server.chat("Hello", response_format=form(PAGE), max_tokens=100, **ways).json()
    assert whole["choices"][0]["message"]["content"] == expected.text
    assert whole["usage"]["completion_tokens"] == expected.usage.completion_tokens
    chunks = streamed(server, "Hello", response_format=form(PAGE), max_tokens=100, **ways)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == expected.text


def test_strict_markup_is_that_of_the_library_and_changes_no_answer_that_meets_it(
    server: RunningServer, varco: Varco, hold: Callable[..., Answer], sign: bytes
) -> None:
    plain = varco.ocr(sign)
    assert [region.text for region in plain.regions] == ["EXIT", "서울"]
    assert hold(sign, OCR_PROMPT, {"kind": "markup", "task": "ocr"}).token_ids == plain.token_ids
    got = server.client.post("/v1/ocr", params={"strict": 1}, content=sign, headers={"content-type": "image/png"})
    assert got.json()["token_ids"] == list(plain.token_ids)


def test_constrained_answers_in_all_slots_are_those_given_alone(server: RunningServer) -> None:
    """Every second of them, beside free ones; each kind of grammar is asked for by several at once."""
    forms: list[Any] = [form(PAGE), None, {"type": "json_object"}, None] * 2

    def ask(index: int) -> Any:
        fields = {"max_tokens": 40, "temperature": index / 8, "seed": index}
        if forms[index] is not None:
            fields["response_format"] = forms[index]
        got = server.chat(f"Hello {index}", **fields)
        assert got.status_code == 200, got.text
        return got.json()["choices"][0]["message"]["content"]

    alone = [ask(index) for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(ask, range(8))) == alone


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "integer", "multipleOf": 1000003}, "multipleOf"),
        ({"type": "string", "pattern": "^(a?){3000}a{3000}$"}, "lexer error"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "No answer begins"),
        ({"allOf": [{"anyOf": [closed(**{f"{i}{j}": {}}) for j in range(10)]} for i in range(6)]}, "too large"),
    ],
    ids=["unsupported", "look-around", "multiple", "explodes", "endless", "product"],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_be_honored_is_a_bad_request_by_name(
    server: RunningServer, document: dict[str, Any], named: str, stream: bool
) -> None:
    worker = server.worker_pid
    got = server.chat("Hello", response_format=form(document), stream=stream)
    error = got.json()["error"]
    assert got.status_code == 400
    assert named in error["message"]
    assert "\n" not in error["message"]
    assert (error["param"], error["type"]) == ("response_format", "invalid_request_error")
    assert server.worker_pid == worker


def without_numbers(text: str) -> str:
    return re.sub(r"\d+", "N", text)


def test_a_schema_that_dies_under_an_answer_is_its_error_and_no_other_ones(server: RunningServer) -> None:
    expected = server.chat("Hello", max_tokens=60).json()["choices"][0]["message"]["content"]
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(server.chat, "Hello", max_tokens=60) for _ in range(4)]
        whole = pool.submit(server.chat, "Hello", response_format=form(DIES), max_tokens=300)
        chunks = pool.submit(streamed, server, "Hello", response_format=form(DIES), max_tokens=300)
        got = whole.result()
        assert got.status_code == 400
        assert "cannot be held to the grammar beyond its token" in got.json()["error"]["message"]
        *said, last = chunks.result()
        assert any(chunk["choices"][0]["delta"].get("content") for chunk in said)
        # Answers of one schema share what llguidance keeps of it, so that either may fill it a token earlier.
        assert without_numbers(last["error"]["message"]) == without_numbers(got.json()["error"]["message"])
        for other in others:
            assert other.result().json()["choices"][0]["message"]["content"] == expected
