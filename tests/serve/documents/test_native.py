"""Requests of the native routes, with the picture as the body or in JSON, and their answers' formats."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.doubles.model import done
from tests.makers.requests import PIXEL, data_url
from varco_runtime.answer.formats import to_coco, to_hocr, to_json_regions
from varco_runtime.markup.parser import parse
from varco_serve.documents.errors import RequestError
from varco_serve.documents.native import NativeRequest, formatted, in_native_words, parse_native
from varco_serve.messages import AskTurn, Failed

REFER = {"prompt": "What is {object}?", "text": "this", "box": "0.1, 0.2,0.3,0.4"}
ASKED = "What is <obj>this</obj><bbox>0.1, 0.2, 0.3, 0.4</bbox>?"


def raw(task: str, body: bytes = PIXEL, content_type: str = "image/png", **query: str) -> NativeRequest:
    return parse_native(task, query, content_type, body)


def in_json(task: str, query: dict[str, str] | None = None, **fields: Any) -> NativeRequest:
    return parse_native(task, query or {}, "application/json", {"image": data_url(), **fields})


@pytest.mark.parametrize(
    ("task", "fields", "question"),
    [
        ("ocr", {}, "<ocr>"),
        ("ground", {"prompt": "Where?"}, "<gro>\nWhere?"),
        ("ground", {"prompt": "1"}, "<gro>\n1"),
        ("refer", REFER, ASKED),
    ],
)
def test_a_task_asks_as_varco_run_does(task: str, fields: dict[str, str], question: str) -> None:
    expected = NativeRequest((AskTurn("user", (0, question)),), (PIXEL,), {}, None, (), "json")
    assert raw(task, **fields) == expected
    assert in_json(task, **fields) == replace(expected, picture_params=("image",))
    assert in_json(task, fields) == replace(expected, picture_params=("image",))


def test_a_box_in_json_is_a_list() -> None:
    assert in_json("refer", **{**REFER, "box": [0.1, 0.2, 0.3, 0.4]}).turns[0].parts == (0, ASKED)


def test_fields_of_the_address_have_the_types_of_json() -> None:
    request = raw(
        "ocr",
        strict="1",
        max_tokens="5",
        temperature="0.5",
        top_p="1e-1",
        stop="12",
        seed="7",
        ignore_eos="true",
        stop_loops="0",
        long_side="512",
        tiling="grid",
        system="Be short.",
        format="hocr",
        made_up="x",
    )
    assert request.turns == (AskTurn("system", ("Be short.",)), AskTurn("user", (0, "<ocr>")))
    assert request.options == {
        "max_new_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.1,
        "stop": ["12"],
        "seed": 7,
        "ignore_eos": True,
        "stop_loops": False,
        "long_side": 512,
        "tiling": "grid",
    }
    assert (request.grammar, request.format) == ({"kind": "markup", "task": "ocr"}, "hocr")
    assert request.ignored == ("made_up",)


@pytest.mark.parametrize(
    ("task", "query", "param"),
    [
        ("ocr", {"prompt": "Read."}, "prompt"),
        ("ground", {}, "prompt"),
        ("refer", {}, "prompt"),
        ("refer", {"prompt": "a"}, "text"),
        ("refer", {"prompt": "a", "text": "b"}, "box"),
        ("refer", {"prompt": "a", "text": " ", "box": "0,0,1,1"}, "text"),
        ("refer", {"prompt": "a", "text": "<obj>", "box": "0,0,1,1"}, "text"),
        ("refer", {"prompt": "a", "text": "b", "box": "0,0,1"}, "box"),
        ("refer", {"prompt": "a", "text": "b", "box": "0,0,1,1,1"}, "box"),
        ("refer", {"prompt": "a", "text": "b", "box": "0,0,x,1"}, "box[2]"),
        ("refer", {"prompt": "a", "text": "b", "box": "0,nan,1,1"}, "box[1]"),
        ("refer", {"prompt": "a", "text": "b", "box": "0,0,1,1.5"}, "box[3]"),
        ("refer", {"prompt": "a", "text": "b", "box": "0.5,0,0.5,1"}, "box"),
        ("ocr", {"strict": "yes"}, "strict"),
        ("ocr", {"format": "xml"}, "format"),
        ("ocr", {"max_tokens": "many"}, "max_tokens"),
        ("ocr", {"max_tokens": "9" * 30}, "max_tokens"),
        ("ocr", {"temperature": "NaN"}, "temperature"),
        ("ocr", {"n": "2"}, "n"),
        ("ocr", {"stream": "true"}, "stream"),
        ("ocr", {"logprobs": "true"}, "logprobs"),
        ("ocr", {"chat_template": "x"}, "chat_template"),
        ("ocr", {"image": "data:image/png;base64,AAAA"}, "image"),
    ],
)
def test_bad_fields_are_refused_by_name(task: str, query: dict[str, str], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        raw(task, **query)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ([], None),
        ({}, "image"),
        ({"image": 5}, "image"),
        ({"image": "https://example.com/a.png"}, "image"),
        ({"image": "data:image/png;base64,AA"}, "image"),
        ({"image": data_url(), "messages": []}, "messages"),
        ({"image": data_url(), "response_format": {"type": "json_object"}}, "response_format"),
        ({"image": data_url(), "strict": 1}, "strict"),
        ({"image": data_url(), "n": 2}, "n"),
    ],
)
def test_bad_json_is_refused_by_name(document: object, param: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        parse_native("ocr", {}, "application/json", document)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_field_stands_in_one_place() -> None:
    with pytest.raises(RequestError, match="'seed' stands in the address and in the body"):
        in_json("ocr", {"seed": "5"}, seed=5)


@pytest.mark.parametrize("content_type", ["image/tiff", "image/svg+xml", "image/", "text/plain"])
def test_other_bodies_are_refused(content_type: str) -> None:
    with pytest.raises(RequestError, match="expected one of image/png"):
        raw("ocr", content_type=content_type)


def test_an_empty_body_is_no_picture() -> None:
    with pytest.raises(RequestError, match="empty"):
        raw("ocr", b"")


@pytest.mark.parametrize(
    ("param", "told"), [("messages", None), ("response_format", "strict"), ("image", "image"), (None, None)]
)
def test_a_failed_answer_names_no_field_of_a_chat(param: str | None, told: str | None) -> None:
    assert in_native_words(Failed(400, "No.", "c", param)) == Failed(400, "No.", "c", told)


MARKUP = "<char>EXIT</char><bbox>0.1, 0.2, 0.3, 0.4</bbox>\n<obj>a <b></obj><bbox>0, 0, 1, 1</bbox>"
SIZE = (200, 100)


def document() -> dict[str, Any]:
    read = parse(MARKUP)
    return done(
        MARKUP,
        plain_text=read.plain_text,
        regions=to_json_regions(read.regions, SIZE),
        picture={"width": SIZE[0], "height": SIZE[1]},
    ).document


def test_formats_are_those_of_varco_run() -> None:
    read = parse(MARKUP)
    answer = document()
    assert formatted(answer, "text") == ("text/plain; charset=utf-8", MARKUP + "\n")
    kind, text = formatted(answer, "json")
    assert (kind, json.loads(text)) == ("application/json", answer)
    kind, text = formatted(answer, "coco")
    assert (kind, json.loads(text)) == ("application/json", to_coco(read.regions, SIZE, 0))
    assert formatted(answer, "hocr") == (
        "application/xhtml+xml; charset=utf-8",
        to_hocr(read.regions, SIZE, "", read.plain_text),
    )
