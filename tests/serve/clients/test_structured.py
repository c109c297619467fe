"""Answers in a form that a client asks for: OpenAI's `parse` with a class, JSON objects, schemas that are refused."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.makers.requests import data_url, picture_part, text_part, user

HELLO: Any = [user("Hello")]


class Sign(pydantic.BaseModel):
    """Few answers fit it, so that a small model ends in time."""

    kind: Literal["sign", "photo"]
    words: Literal[1, 2, 3]
    is_korean: bool


def asking(sign: bytes) -> Any:
    return [user(picture_part(data_url(sign)), text_part("Describe this image."))]


def test_parse_gives_an_object_of_the_class(client: openai.OpenAI, sign: bytes) -> None:
    said = client.chat.completions.parse(model="varco", messages=asking(sign), response_format=Sign, max_tokens=200)
    parsed = said.choices[0].message.parsed
    assert isinstance(parsed, Sign)
    assert json.loads(said.choices[0].message.content or "") == parsed.model_dump()


def test_a_stream_is_parsed_as_well(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="varco", messages=HELLO, response_format=Sign, max_tokens=200) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Sign)


def test_an_answer_that_is_cut_off_is_told_from_a_whole_one(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="varco", messages=HELLO, response_format=Sign, max_tokens=3)


def test_each_of_several_answers_has_the_form(client: openai.OpenAI) -> None:
    said = client.chat.completions.parse(
        model="varco", messages=HELLO, response_format=Sign, n=2, temperature=2, seed=1, max_tokens=400
    )
    assert all(isinstance(choice.message.parsed, Sign) for choice in said.choices)


@pytest.mark.parametrize("strict", [True, False, None])
def test_a_schema_is_held_to_whether_it_is_strict_or_not(client: openai.OpenAI, strict: bool | None) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"], "additionalProperties": False}
    asked: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": strict}}
    said = client.chat.completions.create(model="varco", messages=HELLO, response_format=asked, max_tokens=100)
    assert json.loads(said.choices[0].message.content or "") == {"a": "x"}


def test_a_json_object_begins_as_one(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(
        model="varco", messages=HELLO, response_format={"type": "json_object"}, max_tokens=20
    )
    content = said.choices[0].message.content or ""
    assert content.lstrip().startswith("{")
    if said.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(content), dict)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://example.com/schema"},
        {"type": "object", "properties": {"a": {"type": "nothing"}}},
        {"enum": []},
        {"not": {}},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_is_not_supported_is_a_bad_request(
    client: openai.OpenAI, schema: dict[str, Any], stream: bool
) -> None:
    asked: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="varco", messages=HELLO, response_format=asked, stream=stream)
    assert caught.value.param == "response_format"
