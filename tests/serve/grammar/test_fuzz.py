"""Any document in the place of a schema: nothing but one line comes of it, or answers that are JSON."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serve.grammar.conftest import Small, schema, walk
from varco_serve.grammar.errors import GrammarError

KEYWORDS = (
    "type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems", "enum",
    "const", "anyOf", "oneOf", "allOf", "not", "$ref", "$defs", "$id", "$anchor", "$schema", "pattern", "format",
    "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "patternProperties", "minProperties", "maxProperties", "uniqueItems", "if", "then", "title", "x-guidance",
)  # fmt: skip
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
PATTERNS = (
    "^a+$",
    "(",
    "[a-z]{2,5}",
    "^(a|b)*c{1,3}$",
    "(a{50}){50}",
    "(?=a)",
    r"\p{L}",
    "[",
    "a{9999999}",
    "",
    "\\",
    "/",
)
FORMATS = ("date", "date-time", "email", "ipv4", "ipv6", "uuid", "uri", "hostname", "time", "duration", "nothing")
REFERENCES = ("#", "#/$defs/a", "#/$defs/b", "#/properties/a", "http://a.b/c", "", "#/$defs", "a", "\ud800")
SCALARS = (None, True, False, 0, -1, 10**9, 2**63, 10**400, 1e308, 0.001, float("nan"), "", "\x00", "한글")
NAMES = ("a", "b", "$ref", "", "한", '"', "\n")

LISTS, MAPPINGS = ("anyOf", "oneOf", "allOf", "prefixItems"), ("properties", "$defs", "patternProperties")
CHILDREN = ("items", "additionalProperties", "not", "if")


class Documents:
    """Schemas and what is almost one, from a seed: strategies of hypothesis take fifty times as long to draw."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def document(self, depth: int = 3) -> Any:
        """Return a schema, one time of fifteen anything else."""
        draw = self._random
        if draw.random() < 1 / 15:
            return self.junk(2)
        size = draw.choice((0, 1, 1, 2, 3, 5))
        return {name: self._value(name, depth) for name in draw.sample(KEYWORDS, size)} | self._type()

    def junk(self, depth: int) -> Any:
        """Return anything that JSON can say, and a little more."""
        draw = self._random
        kind = draw.randrange(4 if depth else 2)
        if kind < 2:
            return draw.choice(
                (*SCALARS, *TYPES, *PATTERNS, *FORMATS, *REFERENCES, draw.randint(-9, 99), draw.random())
            )
        children = [self.junk(depth - 1) for _ in range(draw.randrange(4))]
        return children if kind == 2 else dict(zip(NAMES, children, strict=False))

    def _type(self) -> dict[str, Any]:
        return {"type": self._random.choice(TYPES)} if self._random.random() < 0.7 else {}

    def _value(self, name: str, depth: int) -> Any:
        draw = self._random
        if draw.random() < 1 / 15:
            return self.junk(2)
        if name in LISTS or name in MAPPINGS or name in CHILDREN:
            children = [self.document(depth - 1) if depth else {} for _ in range(draw.randrange(1, 4))]
            names = PATTERNS if name == "patternProperties" else NAMES
            return (
                children
                if name in LISTS
                else children[0]
                if name in CHILDREN
                else dict(zip(names, children, strict=False))
            )
        choices = {"type": TYPES, "pattern": PATTERNS, "format": FORMATS, "$ref": REFERENCES}
        if name in choices:
            return draw.choice(choices[name])
        if name == "required":
            return draw.sample(NAMES, draw.randrange(3))
        if name == "enum":
            return [self.junk(1) for _ in range(draw.randrange(1, 5))]
        if "inimum" in name or "aximum" in name or name == "multipleOf":
            return draw.choice((draw.randint(-9, 99), round(draw.uniform(-9, 9), 3)))
        return draw.randint(0, 6) if name.startswith(("min", "max")) else self.junk(1)


@given(st.integers(0, 2**64))
@settings(max_examples=150, deadline=None)
def test_whatever_stands_for_a_schema_it_is_one_line_or_json(small: Small, seed: int) -> None:
    try:
        answer = walk(small, small.grammars.constraint(schema(Documents(seed).document())), seed, 60)
    except GrammarError as error:
        told = str(error)
    else:
        told = ""
        if answer.is_complete:
            json.loads(small.text(answer.ids))
    assert "\n" not in told
    assert len(told) < 400
    assert "/src/" not in told


@pytest.mark.full
@given(st.integers(0, 2**64))
@settings(max_examples=5000, deadline=None)
def test_whatever_stands_for_a_schema_it_is_one_line_or_json_at_length(small: Small, seed: int) -> None:
    test_whatever_stands_for_a_schema_it_is_one_line_or_json.hypothesis.inner_test(small, seed)  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(40))
def test_whatever_stands_for_a_grammar_is_refused_in_one_line(small: Small, seed: int) -> None:
    junk = Documents(seed).junk
    kinds = (junk(1), "json_schema", "json_object", "markup")
    grammar = {"kind": kinds[seed % 4], "schema": junk(2), "task": junk(1)}
    with contextlib.suppress(GrammarError):
        walk(small, small.grammars.constraint(grammar), 0, 20)


def test_this_fuzzer_gets_beyond_the_first_check(small: Small) -> None:
    """One whose documents are all refused at the door shows nothing."""
    outcomes: list[str] = []
    for seed in range(150):
        try:
            walk(small, small.grammars.constraint(schema(Documents(seed).document())), seed, 30)
            outcomes.append("said")
        except GrammarError as error:
            outcomes.append(str(error))
    assert outcomes.count("said") > 30
    assert len(set(outcomes)) > 20


@pytest.mark.full
def test_complete_answers_are_valid_by_another_library(small: Small) -> None:
    """But for what JSON's text can say and doubles cannot: 1e999, and multiples of decimals."""
    jsonschema = pytest.importorskip("jsonschema_rs", reason="it comes with schemathesis")
    num_valid = 0
    for seed in range(1500):
        document = Documents(seed).document()
        if "multipleOf" in str(document):
            continue
        try:
            answer = walk(small, small.grammars.constraint(schema(document)), seed, 80)
            text = small.text(answer.ids)
            is_valid = jsonschema.validator_for(document).is_valid
        except (GrammarError, jsonschema.ValidationError, ValueError):  # refused by one of the two
            continue
        if answer.is_complete and "Infinity" not in str(json.dumps(json.loads(text))):
            assert is_valid(json.loads(text)), (document, text)
            num_valid += 1
    assert num_valid > 200
