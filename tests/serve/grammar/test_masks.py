"""Masks, token by token: over a small vocabulary they are what a search through all answers gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.serve.grammar.conftest import NUM_EMPTY_ROWS, Small, schema, walk
from varco_runtime.generation.constraint import Constraint
from varco_serve.grammar.errors import GrammarError
from varco_serve.grammar.grammars import Grammars

ANSWERS: tuple[tuple[Any, ...], ...] = (
    ("exit", "exits", "이 그림", "the cats", 12, 125, None, True, ["a", "ab"], {"k": 1}),
    ("", " ", "  ", "image. ", "이", "이 "),
    (0, 1, 10, 100, 1000, -1),
)


def by_search(small: Small, texts: Sequence[bytes], said: bytes) -> np.ndarray[Any, Any]:
    """Return the tokens that some answer goes on with behind what was said, one by one."""
    added = set(small.tokenizer.added_token_ids.values())
    allowed = np.zeros(small.vocab_size, np.bool_)
    for id_ in range(small.vocab_size):
        data = small.tokenizer.token_bytes(id_)
        allowed[id_] = bool(data) and id_ not in added and any(text.startswith(said + data) for text in texts)
    allowed[list(small.eos_token_ids)] = said in texts
    return allowed


@pytest.mark.parametrize("answers", ANSWERS, ids=str)
def test_a_mask_is_what_a_search_through_all_answers_gives(small: Small, answers: tuple[Any, ...]) -> None:
    """Except where what comes next is certain: there it is written as the tokenizer writes it."""
    texts = [json.dumps(answer, ensure_ascii=False).encode() for answer in answers]
    seen: set[bytes] = set()
    for seed in range(60):
        constraint, said = small.grammars.constraint(schema({"enum": list(answers)})), b""
        rng = np.random.default_rng(seed)
        while True:
            seen.add(said)
            possible, coming = by_search(small, texts, said), list(constraint.forced())
            if coming and coming[0] in small.eos_token_ids:
                assert np.flatnonzero(possible).tolist() == sorted(small.eos_token_ids)
                break
            if coming:
                certain = said + b"".join(map(small.tokenizer.token_bytes, coming))
                assert all(text.startswith(certain) for text in texts if text.startswith(said))
                token = coming[0]
            else:
                assert constraint.allowed().tolist() == possible.tolist(), said
                token = int(rng.choice(np.flatnonzero(possible)))
            constraint.accept(token)
            if token in small.eos_token_ids:
                break
            said += small.tokenizer.token_bytes(token)
    assert set(texts) <= seen


@pytest.mark.parametrize("kind", ["json_object", "ocr", "ground"])
def test_a_row_without_a_token_and_an_added_token_in_text_are_never_allowed(small: Small, kind: str) -> None:
    grammar = {"kind": kind} if kind == "json_object" else {"kind": "markup", "task": kind}
    empty = [id_ for id_ in range(small.vocab_size) if not small.tokenizer.token_bytes(id_)]
    assert len(empty) >= NUM_EMPTY_ROWS
    ids, tags = (
        small.tokenizer.added_token_ids,
        {"<char>", "</char>", "<obj>", "</obj>", "<bbox>", "</bbox>", "<delim>"},
    )
    never = [id_ for content, id_ in ids.items() if kind == "json_object" or content not in tags]
    never = [id_ for id_ in never if id_ not in small.eos_token_ids]
    broken = [id_ for id_ in range(small.vocab_size) if small.tokenizer.token_bytes(id_) == b"\xff"]
    assert len(broken) == 1
    for seed in range(20):
        for _, allowed in walk(small, small.grammars.constraint(grammar), seed).masks:
            assert allowed.any()
            assert not allowed[[*empty, *never, *broken]].any()


def test_what_is_forced_is_forced_from_each_of_its_places_on(small: Small) -> None:
    constraint = small.grammars.constraint(schema({"const": {"text": "a long text that is certain"}}))
    coming = list(constraint.forced())
    assert len(coming) > 8
    for index, token in enumerate(coming):
        assert list(constraint.forced()) == coming[index:]
        constraint.accept(token)
    assert list(constraint.forced()) == [small.eos_token_ids[0]]


@pytest.mark.parametrize("bad", [0, 5, -1])
def test_a_token_that_is_not_allowed_is_an_error_that_stays(small: Small, bad: int) -> None:
    constraint: Constraint = small.grammars.constraint(schema({"type": "integer"}))
    bad = bad if bad >= 0 else small.vocab_size - 1
    assert not constraint.allowed()[bad]
    with pytest.raises(GrammarError, match="beyond its token 0"):
        constraint.accept(bad)
    with pytest.raises(GrammarError):
        constraint.forced()


def test_an_end_token_before_the_grammars_end_is_an_error(small: Small) -> None:
    constraint = small.grammars.constraint(schema({"type": "string"}))
    with pytest.raises(GrammarError, match="ends at its token 0, before its grammar does"):
        constraint.accept(small.eos_token_ids[0])


def test_constraints_of_one_grammar_know_nothing_of_each_other(small: Small) -> None:
    grammar = schema({"enum": ["exit", "cats"]})
    alone = [walk(small, small.grammars.constraint(grammar), seed).ids for seed in range(6)]
    first, second = small.grammars.constraint(grammar), small.grammars.constraint(grammar)
    for token in alone[0][:3]:
        first.accept(token)
    assert walk(small, second, 1).ids == alone[1]
    for token in alone[0][3:]:
        first.accept(token)


@pytest.mark.parametrize("eos_token_ids", [(), (5000,), (-1,)])
def test_a_model_without_an_end_token_cannot_be_held_to_a_grammar(small: Small, eos_token_ids: tuple[int, ...]) -> None:
    with pytest.raises(GrammarError, match="end tokens are"):
        Grammars(small.tokenizer, eos_token_ids, small.vocab_size)
