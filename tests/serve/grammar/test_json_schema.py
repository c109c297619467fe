"""Answers by a JSON schema: valid whatever the model says, written on one line, and refused in one line."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import pytest

from tests.serve.grammar.conftest import Small, closed, schema, walk
from varco_serve.grammar.errors import GrammarError
from varco_serve.grammar.json_schema import MAX_SCHEMA_BYTES

SIGN = closed(
    text={"type": "string", "maxLength": 12},
    kind={"enum": ["exit", "출구", 7, None, True]},
    size={"type": "number", "minimum": 0, "maximum": 9},
    words={"type": "array", "items": {"type": "string", "pattern": "^[A-Z]{1,5}$"}, "maxItems": 3},
    place={"anyOf": [{"type": "null"}, closed(x={"type": "integer", "minimum": -5, "maximum": 999})]},
)


def is_sign(value: Any) -> bool:
    """Check an answer by hand."""
    words, place = value["words"], value["place"]
    return (
        list(value) == ["text", "kind", "size", "words", "place"]
        and len(value["text"]) <= 12
        and value["kind"] in ("exit", "출구", 7, None, True)
        and 0 <= value["size"] <= 9
        and len(words) <= 3
        and all(re.fullmatch("[A-Z]{1,5}", word) for word in words)
        and (place is None or (list(place) == ["x"] and -5 <= place["x"] <= 999))
    )


def test_whatever_a_model_chooses_its_answer_is_json_by_the_schema(small: Small) -> None:
    for seed in range(40):
        answer = walk(small, small.grammars.constraint(schema(SIGN)), seed)
        assert answer.is_complete
        assert is_sign(json.loads(small.text(answer.ids))), small.text(answer.ids)


def test_outside_of_strings_there_is_no_blank_but_behind_a_comma_and_a_colon(small: Small) -> None:
    """Where white space is free, a model may go on with it up to its last token."""
    for seed in range(40):
        text = small.text(walk(small, small.grammars.constraint({"kind": "json_object"}), seed, bend=0.1).ids)
        bare = re.sub(r'"(?:[^"\\]|\\.)*("|$)', "s", text)
        assert not re.search(r"\s", bare.replace(", ", ",").replace(": ", ":").removesuffix(" ")), text


def test_an_object_is_an_object(small: Small) -> None:
    num_complete = 0
    for seed in range(40):
        answer = walk(small, small.grammars.constraint({"kind": "json_object"}), seed, max_tokens=200)
        assert small.text(answer.ids).startswith("{")
        num_complete += answer.is_complete
        assert not answer.is_complete or isinstance(json.loads(small.text(answer.ids)), dict)
    assert num_complete > 10


def test_what_pydantic_and_zod_write_is_taken(small: Small) -> None:
    document = """{"$schema": "http://json-schema.org/draft-07/schema#", "title": "Page", "description": "d",
      "$defs": {"Line": {"title": "Line", "type": "object", "properties": {"text": {"title": "T", "type": "string",
      "maxLength": 3, "examples": ["a"]}, "score": {"anyOf": [{"type": "integer", "maximum": 9, "minimum": 0},
      {"type": "null"}], "default": null, "title": "S"}}, "required": ["text", "score"],
      "additionalProperties": false}},
      "type": "object", "properties": {"lines": {"items": {"$ref": "#/$defs/Line"}, "title": "Lines", "type": "array",
      "maxItems": 2}, "lang": {"const": "ko", "type": "string"}}, "required": ["lines", "lang"],
      "additionalProperties": false}"""
    for seed in range(10):
        page = json.loads(small.text(walk(small, small.grammars.constraint(schema(json.loads(document))), seed).ids))
        assert page["lang"] == "ko"
        assert all(set(line) == {"text", "score"} for line in page["lines"])


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        (False, "not"),
        ({"type": "string", "format": "idn-email"}, "idn-email"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "string", "pattern": "(" * 500 + "a" + ")" * 500}, "nest"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"type": "strin"}, "strin"),
        ({"properties": []}, "properties must be an object"),
        ({"$ref": "http://a.b/c"}, "not present"),
        ({"$ref": "#/$defs/none"}, "does not exist"),
        ({"$ref": "#"}, "No answer begins"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": -1}, "minItems"),
        ({"type": "number", "minimum": float("nan")}, "no NaN"),
        ({"const": "\ud800"}, "surrogate"),
        ({"type": "number", "multipleOf": 1000003}, "multipleOf"),
        ({"type": "number", "multipleOf": 1e-9 + 1}, "multipleOf"),
        ({"type": "number", "multipleOf": 1e300}, "multipleOf"),
        ({"anyOf": [{"type": "integer", "multipleOf": 9000 + i} for i in range(3)]}, "multipleOf"),
        ({"enum": ["x" * MAX_SCHEMA_BYTES]}, "bytes"),
        ([1], "expected an object"),
        (None, "expected an object"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_schema_that_cannot_be_honored_is_one_line_that_names_what(small: Small, document: Any, reason: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(reason)) as caught:
        small.grammars.constraint(schema(document))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_levels_beyond_what_json_may_have_are_refused(small: Small) -> None:
    deep: Any = {"type": "string"}
    for _ in range(100_000):
        deep = {"items": deep}
    with pytest.raises(GrammarError, match="few levels"):
        small.grammars.constraint({"kind": "json_schema", "schema": deep})


@pytest.mark.parametrize("kind", [None, "regex", "json", 5])
def test_a_grammar_of_another_kind_is_refused(small: Small, kind: Any) -> None:
    with pytest.raises(GrammarError, match="expected json_schema, json_object or markup"):
        small.grammars.constraint({"kind": kind})


def test_the_options_of_the_library_cannot_be_set_by_a_schema(small: Small) -> None:
    options = {"lenient": True, "whitespace_flexible": True, "whitespace_pattern": " +"}
    answer = walk(small, small.grammars.constraint(schema({"x-guidance": options, **closed(a={"const": 1})})), 0)
    assert small.text(answer.ids) == '{"a": 1}'
    with pytest.raises(GrammarError, match="not"):
        small.grammars.constraint(schema({"x-guidance": options, "not": {}}))


@pytest.mark.parametrize("link", ["bare", "items", "props", "allOf"])
def test_references_as_deep_as_a_schema_holds_do_not_end_the_process(small: Small, link: str) -> None:
    """Each level is a call within the library, whose own stack would end after some hundred."""

    def definition(index: int) -> dict[str, Any]:
        following = {"$ref": f"#/$defs/{index + 1}"}
        return {
            "bare": following,
            "items": {"type": "array", "items": following},
            "props": {"type": "object", "properties": {"x": following}},
            "allOf": {"allOf": [following, {"minLength": 1}]},
        }[link]

    size = len(json.dumps({"1000": definition(1000)}))
    depth = MAX_SCHEMA_BYTES // size - 10
    definitions = {str(index): definition(index) for index in range(depth)} | {str(depth): {"type": "string"}}
    with contextlib.suppress(GrammarError):  # some are too large
        small.grammars.constraint(schema({"$defs": definitions, "$ref": "#/$defs/0"}))
