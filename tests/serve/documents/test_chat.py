"""Requests for chat completions: what is honoured, what is ignored and named, what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.makers.requests import PIXEL, chat_request, data_url, picture_part, text_part, user
from varco_serve.documents.chat import ChatRequest, Limits, parse_chat
from varco_serve.documents.errors import RequestError
from varco_serve.messages import AskTurn

LIMITS = Limits("varco", 2)


def parsed(*messages: dict[str, Any], **fields: Any) -> ChatRequest:
    return parse_chat(chat_request(*messages, **fields), LIMITS)


def refusal(*messages: dict[str, Any], **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parsed(*messages, **fields)
    error = caught.value
    assert error.message
    assert "\n" not in error.message
    assert len(error.message) < 400, "an error's line echoes the request"
    return error


def test_the_smallest_request_leaves_every_option_to_the_runtime() -> None:
    assert parsed() == ChatRequest(
        turns=(AskTurn("user", ("Hello",)),),
        pictures=(),
        options={},
        grammar=None,
        n=1,
        stream=False,
        include_usage=False,
        logprobs=False,
        ignored=(),
        model="varco",
    )


def test_every_honoured_field_becomes_an_option_of_the_runtime() -> None:
    request = parsed(
        max_tokens=32_768,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        presence_penalty=-2,
        frequency_penalty=2,
        repetition_penalty=1.1,
        seed=7,
        stop=["a", "b"],
        n=4,
        logprobs=True,
        top_logprobs=20,
        logit_bias={"0": -100, "15": 5.5, "16": 0},
        ignore_eos=True,
        stream=True,
        stream_options={"include_usage": True},
        tiling="one",
        long_side=768,
        untrained=True,
        stop_loops=False,
    )
    assert request.options == {
        "max_new_tokens": 32_768,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "presence_penalty": -2.0,
        "frequency_penalty": 2.0,
        "repetition_penalty": 1.1,
        "seed": 7,
        "stop": ["a", "b"],
        "logit_bias": {"0": -100.0, "15": 5.5},
        "ignore_eos": True,
        "tiling": "one",
        "long_side": 768,
        "untrained": True,
        "stop_loops": False,
        "top_logprobs": 20,
    }
    assert (request.n, request.stream, request.include_usage, request.logprobs) == (4, True, True, True)
    assert request.ignored == ()


HONOURED = (
    *("model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty"),
    *("frequency_penalty", "repetition_penalty", "seed", "stop", "n", "logprobs", "top_logprobs", "logit_bias"),
    *("ignore_eos", "stream", "stream_options", "response_format", "tools", "tool_choice", "user", "modalities"),
)


def test_null_means_that_a_field_is_absent() -> None:
    assert parsed(**dict.fromkeys(HONOURED)) == parsed()


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"max_completion_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 9}, {"max_new_tokens": 5}),
        ({"max_tokens": 5.0}, {"max_new_tokens": 5}),
        ({"stop": "end"}, {"stop": ["end"]}),
        ({"stop": []}, {}),
        ({"logit_bias": {}}, {}),
        ({"temperature": 1e-6}, {"temperature": 0.0}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"logprobs": True}, {"top_logprobs": 0}),
        ({"logprobs": False, "top_logprobs": 0}, {}),
    ],
)
def test_fields_that_say_the_same_in_several_ways(fields: dict[str, Any], options: dict[str, Any]) -> None:
    assert parsed(**fields).options == options


@pytest.mark.parametrize("model", ["gpt-4o", "", "VARCO"])
def test_another_model_is_not_found(model: str) -> None:
    error = refusal(model=model)
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")


NUMBERS = {
    "max_tokens": (0, 1 << 31),
    "max_completion_tokens": (0, 1 << 31),
    "temperature": (-0.1, 2.1),
    "top_p": (-0.1, 1.1),
    "top_k": (-1, 1 << 31),
    "min_p": (-0.1, 1.1),
    "presence_penalty": (-2.1, 2.1),
    "frequency_penalty": (-2.1, 2.1),
    "repetition_penalty": (0, 1001),
    "seed": (-1, (1 << 63) - 1),
    "n": (0, 5),
    "top_logprobs": (-1, 21),
    "long_side": (-1, 8193),
}
NO_NUMBERS = (float("nan"), float("inf"), float("-inf"), 10**400, -(1 << 70), 1 << 63, True, "1", [1], {"a": 1})


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_out_of_bounds_or_of_another_type_are_refused_by_name(name: str) -> None:
    for value in (*NUMBERS[name], *NO_NUMBERS):
        error = refusal(**{"logprobs": True, name: value})
        assert (error.status, error.param) == (400, name)


@pytest.mark.parametrize("name", ["stream", "logprobs", "ignore_eos", "untrained", "stop_loops"])
def test_flags_are_true_or_false_alone(name: str) -> None:
    for value in (1, 0, "true", [], {}):
        assert refusal(**{name: value}).param == name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": 5}, "stop"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a", None]}, "stop[1]"),
        ({"stop": ["\ud800"]}, "stop[0]"),
        ({"stop": "x" * 1025}, "stop[0]"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"٣": 1}}, "logit_bias"),
        ({"logit_bias": {"1" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"5": None}}, "logit_bias.5"),
        ({"logit_bias": {str(id_): 1 for id_ in range(1025)}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tiling": "many"}, "tiling"),
        ({"model": 5}, "model"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ],
)
def test_other_bad_values_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


def test_what_cannot_change_an_answer_is_ignored_and_named() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    request = parsed(
        user(picture_part(detail="high", zoom=2), {**text_part("a"), "cache_control": {}}) | {"name": "bob"},
        user="u",
        metadata={"a": 1},
        store=True,
        tools=tools,
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning_effort="low",
        prediction={"type": "content"},
        response_format={"type": "text", "extra": 1},
        stream_options={"include_usage": True},
        made_up={"deep": [1]},
        best_of=1,
        min_tokens=0,
        add_generation_prompt=True,
        modalities=["text"],
    )
    assert set(request.ignored) == {
        *("user", "metadata", "store", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "prediction"),
        *("made_up", "best_of", "min_tokens", "add_generation_prompt", "modalities", "stream_options"),
        *("messages.name", "content.cache_control", "image_url.detail", "image_url.zoom", "response_format.extra"),
    }
    assert request.options == {}


def test_names_of_ignored_fields_fit_a_header() -> None:
    names = {"\r\nset-cookie: a": 1, "한": 1, "": 1, "x" * 5000: 1, "a, b": 1, **{f"f{i}": 1 for i in range(100)}}
    ignored = parsed(**names).ignored
    assert len(ignored) == 32
    for name in ignored:
        assert 1 <= len(name) <= 64
        assert name.isascii()
        assert name.isprintable()
        assert not set(name) & set(' ,;"\r\n')


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template", "{{ messages }}"),
        ("chat_template", ""),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("tool_choice", {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}}),
        ("function_call", {"name": "f"}),
        ("prompt_logprobs", 0),
        ("prompt_logprobs", 5),
        ("best_of", 2),
        ("n_probs", 5),
        ("return_tokens_as_token_ids", True),
        ("echo", True),
        ("suffix", "end"),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("web_search_options", {}),
        ("continue_final_message", True),
        ("add_generation_prompt", False),
        ("stop_token_ids", [5]),
        ("min_tokens", 5),
        ("use_beam_search", True),
        ("guided_json", {}),
        ("guided_choice", ["a"]),
        ("structured_outputs", {"regex": "a"}),
        ("grammar", "root ::= 'a'"),
        ("images", ["aGk="]),
        ("system", "Be short."),
        ("max_new_tokens", 5),
        ("repeat_penalty", 1.3),
        ("truncate_prompt_tokens", 5),
    ],
)
def test_what_would_change_an_answer_and_is_not_supported_is_refused_by_name(name: str, value: object) -> None:
    error = refusal(**{name: value})
    assert (error.status, error.param, error.code) == (400, name, "unsupported_parameter")
    assert name in error.message


def test_tools_that_may_be_called_and_need_not_be_are_ignored() -> None:
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}
    assert parsed(tools=[], tool_choice=allowed).ignored == ("tools", "tool_choice")


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("asked", "grammar"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"kind": "json_object"}),
        ({"type": "json_object", "schema": SCHEMA}, {"kind": "json_schema", "schema": SCHEMA}),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}},
            {"kind": "json_schema", "schema": SCHEMA},
        ),
    ],
)
def test_response_format_becomes_a_grammar(asked: dict[str, Any], grammar: dict[str, Any] | None) -> None:
    request = parsed(response_format=asked)
    assert request.grammar == grammar
    assert request.ignored == ()


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ("json", "response_format"),
        ({}, "response_format.type"),
        ({"type": "regex"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": True}}, "response_format.json_schema.schema"),
        ({"type": "json_object", "schema": []}, "response_format.schema"),
        ({"type": "json_schema", "json_schema": {"schema": deep(100)}}, "response_format.json_schema.schema"),
        (
            {"type": "json_schema", "json_schema": {"schema": {"enum": list(range(30_000))}}},
            "response_format.json_schema.schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": {"const": "x" * 300_000}}},
            "response_format.json_schema.schema",
        ),
        ({"type": "json_schema", "json_schema": {"schema": {"a": "\udc00"}}}, "response_format.json_schema.schema"),
    ],
)
def test_a_response_format_that_is_none_or_too_large_is_refused(asked: object, param: str) -> None:
    assert refusal(response_format=asked).param == param


def test_pictures_come_out_as_the_bytes_of_their_files() -> None:
    request = parsed(user(text_part("a"), picture_part(data_url(b"GIF", "image/gif")), picture_part()))
    assert request.turns == (AskTurn("user", ("a", 0, 1)),)
    assert request.pictures == (b"GIF", PIXEL)
