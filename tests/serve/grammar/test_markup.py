"""Answers in VARCO's markup by its grammar: whatever a model chooses, the parser finds nothing odd."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest

from tests.makers.tiny_tokenizer import MARKUP
from tests.serve.grammar.conftest import Small, walk
from varco_runtime.generation.constraint import Constraint
from varco_runtime.markup.parser import parse
from varco_runtime.markup.writer import render
from varco_serve.grammar.errors import GrammarError


def markup(task: str) -> dict[str, str]:
    return {"kind": "markup", "task": task}


@pytest.mark.parametrize(("task", "kind"), [("ocr", "text"), ("ground", "object"), ("refer", "object")])
def test_whatever_a_model_chooses_the_parser_takes_it_without_a_warning(small: Small, task: str, kind: str) -> None:
    num_complete, num_boxes = 0, []
    for seed in range(60):
        answer = walk(small, small.grammars.constraint(markup(task)), seed)
        if not answer.is_complete:
            continue
        parsed = parse(small.text(answer.ids))
        assert parsed.warnings == ()
        assert all(region.kind == kind and region.boxes for region in parsed.regions)
        num_boxes += [len(region.boxes) for region in parsed.regions]
        num_complete += 1
    assert num_complete > 30
    assert len(num_boxes) > 20
    assert max(num_boxes) > 1, "with <delim> between them"


def accept_all(constraint: Constraint, ids: Iterable[int]) -> None:
    for token in ids:
        constraint.accept(token)


def boxes(small: Small, rng: np.random.Generator, first: str) -> str:
    """Return the numbers of a box whose first two are given, the others chosen at random."""
    constraint = small.grammars.constraint(markup("ocr"))
    ids, encode = small.tokenizer.added_token_ids, small.tokenizer.encode_plain
    said = b""
    accept_all(constraint, (ids["<char>"], *encode("a"), ids["</char>"], ids["<bbox>"], *encode(first)))
    while True:
        coming = constraint.forced()
        allowed = coming[:1] or np.flatnonzero(constraint.allowed()).tolist()
        if ids["</bbox>"] in allowed:
            return said.decode()
        token = int(rng.choice(allowed))
        constraint.accept(token)
        said += small.tokenizer.token_bytes(token)


@pytest.mark.parametrize(
    ("x1", "y1"), [*itertools.product(("0", "0.9", "0.99", "0.999", "0.5", "0.499", "0.09", "0.989"), repeat=2)]
)
def test_a_box_ends_right_of_and_below_where_it_begins(small: Small, x1: str, y1: str) -> None:
    rng = np.random.default_rng(int(1000 * (float(x1) + 7 * float(y1))))
    for _ in range(4):
        x2, y2 = boxes(small, rng, f"{x1}, {y1}, ").split(", ")
        assert 1 >= float(x2) > float(x1)
        assert 1 >= float(y2) > float(y1)
        assert max(len(x2), len(y2)) <= len("0.123")


@pytest.mark.parametrize("first", range(0, 1000, 37))
def test_every_number_that_is_greater_can_be_said(small: Small, first: int) -> None:
    """And no other: in thousandths, all of them."""
    constraint = small.grammars.constraint(markup("ocr"))
    ids, encode = small.tokenizer.added_token_ids, small.tokenizer.encode_plain
    opened = (ids["<char>"], *encode("a"), ids["</char>"], ids["<bbox>"], *encode(f"0.{first:03}, 0.1, "))
    accept_all(constraint, opened)
    for second in (0, first - 1, first, first + 1, (first + 1000) // 2, 999):
        if not 0 <= second <= 999:
            continue
        matcher = constraint._matcher.deep_copy()  # type: ignore[attr-defined]
        number = encode(f"0.{second:03}, ")
        assert (matcher.try_consume_tokens(number) == len(number)) == (second > first), second


TEXTS = (
    "EXIT",
    "서울 종로",
    "a < b",
    "x <br> y",
    "</b>",
    "<",
    "<<",
    "< char>",
    "50% & more",
    "<b>fat</b>",
    'it\'s "1"',
)


@pytest.mark.parametrize("text", TEXTS)
def test_labels_and_prose_may_hold_what_looks_a_little_like_a_tag(small: Small, text: str) -> None:
    ids, encode = small.tokenizer.added_token_ids, small.tokenizer.encode_plain
    box = (ids["<bbox>"], *encode("0.1, 0.2, 0.3, 0.4"), ids["</bbox>"])
    for answer in (
        ("ocr", (ids["<char>"], *encode(text), ids["</char>"], *box)),
        ("ground", (*encode(f"Here: {text}"), ids["<obj>"], *encode(text), ids["</obj>"], *box, *encode(" it is."))),
    ):
        constraint = small.grammars.constraint(markup(answer[0]))
        accept_all(constraint, (*answer[1], small.eos_token_ids[0]))


@pytest.mark.parametrize("tag", [*MARKUP, "<think>"])
def test_text_cannot_spell_a_tag(small: Small, tag: str) -> None:
    for before in ("", "<", "a ", "<<", "</"):
        constraint = small.grammars.constraint(markup("ground"))
        with pytest.raises(GrammarError):
            accept_all(constraint, small.tokenizer.encode_plain(f"{before}{tag}"))


def test_an_answer_that_was_read_without_a_warning_can_be_said_again(small: Small) -> None:
    text = "<obj>cat</obj><bbox>0.016, 0.11, 0.483, 0.981<delim>0.5, 0, 1, 1</bbox>"
    for answer in (text, f"Two of them: {text}, and a\n\n- {text}.", "Nothing at all.", ""):
        parsed = parse(answer)
        assert not parsed.warnings
        constraint = small.grammars.constraint(markup("ground"))
        accept_all(constraint, _encoded(small, render(parsed)))
        constraint.accept(small.eos_token_ids[0])


def _encoded(small: Small, text: str) -> list[int]:
    ids: list[int] = []
    for tag in MARKUP:
        text = text.replace(tag, f"\0{tag}\0")
    for part in filter(None, text.split("\0")):
        ids += [small.tokenizer.added_token_ids[part]] if part in MARKUP else small.tokenizer.encode_plain(part)
    return ids


@pytest.mark.parametrize("task", ["chat", "", "ocr\nstart: /.*/", "x" * 500])
def test_a_task_that_is_none_is_refused(small: Small, task: str) -> None:
    with pytest.raises(GrammarError, match="expected ocr, ground or refer") as caught:
        small.grammars.constraint(markup(task))
    assert len(str(caught.value)) < 200


def test_a_model_without_tags_says_so(untagged: Small) -> None:
    with pytest.raises(GrammarError, match="has no token <char>"):
        untagged.grammars.constraint(markup("ocr"))
