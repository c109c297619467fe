"""Grammars over VARCO-VISION's own vocabulary of 151,676 tokens, for logits of 152,064 rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.serve.grammar.conftest import Small, closed, schema, walk
from varco_export.config.config_reader import read_config
from varco_export.config.prompts import prompts_of
from varco_runtime.markup.parser import parse
from varco_runtime.prompt.tokenizer import Tokenizer
from varco_serve.grammar.grammars import Grammars

pytestmark = pytest.mark.full
NUM_ROWS = 152_064


@pytest.fixture(scope="module")
def varco(shared: Path) -> Small:
    folder = shared / "models" / "varco-vision-14b-hf"
    prompts = prompts_of(folder, read_config(folder, {}))
    tokenizer, eos_token_ids = Tokenizer.from_json(prompts.tokenizer_json), prompts.generation.eos_token_ids
    return Small(tokenizer, Grammars(tokenizer, eos_token_ids, NUM_ROWS), eos_token_ids, NUM_ROWS)


def test_rows_without_a_token_are_never_allowed(varco: Small) -> None:
    empty = [id_ for id_ in range(NUM_ROWS) if not varco.tokenizer.token_bytes(id_)]
    assert len(empty) == NUM_ROWS - varco.tokenizer.size
    for grammar in ({"kind": "json_object"}, {"kind": "markup", "task": "ground"}):
        for seed in range(5):
            for _, allowed in walk(varco, varco.grammars.constraint(grammar), seed, 100).masks:
                assert not allowed[empty].any()


def test_what_is_forced_are_the_tokens_that_the_tokenizer_makes_of_it(varco: Small) -> None:
    document = {"kind": {"const": "영수증"}, "a long name of a property": {"enum": ["only this"]}}
    text = json.dumps({"kind": "영수증", "a long name of a property": "only this"}, ensure_ascii=False)
    constraint = varco.grammars.constraint(schema(closed(**document)))
    coming = list(constraint.forced())
    assert coming == varco.tokenizer.encode_plain(text)[: len(coming)]
    assert len(coming) > 0.9 * len(varco.tokenizer.encode_plain(text))


def test_whatever_a_model_chooses_is_valid(varco: Small) -> None:
    page = closed(
        title={"type": "string", "maxLength": 10},
        lines={"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
        size={"type": "number", "minimum": 0, "maximum": 9},
    )
    for seed in range(10):
        answer = walk(varco, varco.grammars.constraint(schema(page)), seed)
        assert set(json.loads(varco.text(answer.ids))) == {"title", "lines", "size"}
    for task in ("ocr", "ground"):
        complete = [
            answer
            for seed in range(20)
            if (answer := walk(varco, varco.grammars.constraint({"kind": "markup", "task": task}), seed)).is_complete
        ]
        assert complete
        assert not any(parse(varco.text(answer.ids)).warnings for answer in complete)


@pytest.mark.parametrize("text", ["Exit 출구 A-1", "a <br> b", "x < y", "100% & more"])
def test_text_is_taken_in_the_tokens_that_the_tokenizer_makes_of_it(varco: Small, text: str) -> None:
    ids = varco.tokenizer.added_token_ids
    constraint = varco.grammars.constraint({"kind": "markup", "task": "ocr"})
    for token in (ids["<char>"], *varco.tokenizer.encode_plain(text), ids["</char>"], ids["<bbox>"]):
        constraint.accept(token)
    digits = np.flatnonzero(constraint.allowed())
    assert {varco.tokenizer.token_bytes(int(id_)) for id_ in digits} <= {b"0", b"0."}
