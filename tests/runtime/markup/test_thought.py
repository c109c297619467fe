"""A thought in front of an answer is no part of the plain text, and OCR answers are read with and without lines."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from varco_runtime.markup.parser import StreamParser, parse
from varco_runtime.markup.regions import Parsed
from varco_runtime.markup.writer import render

ITEM = "<char>{}</char><bbox>{}, 0.1, {}, 0.2</bbox>"
ITEMS = [ITEM.format(text, left, round(left + 0.2, 1)) for text, left in (("EXIT", 0.1), ("서울", 0.4), ("A1", 0.7))]
PIECES = st.lists(st.sampled_from(["<think>", "</think>", "<th", "ink>", " ", "\n", "a", *ITEMS, "<char>"]), max_size=8)


def in_pieces(text: str, cut: int) -> Parsed:
    parser = StreamParser()
    for start in range(0, len(text), cut):
        parser.feed(text[start : start + cut])
    parser.finish()
    return parser.parsed


def test_a_thought_is_left_out_with_the_white_space_behind_it() -> None:
    parsed = parse("<think>\nI see <char>x</char>.\n</think>\n\n" + ITEMS[0])
    assert parsed == parse(ITEMS[0])
    assert parsed.warnings == ()


def test_an_empty_thought_is_left_out() -> None:
    assert parse("<think>\n\n</think>\n\nTwo cats.") == Parsed("Two cats.")


@pytest.mark.parametrize("text", ["a <think>b</think>", "<think", "<thinking> it over", "</think>", "a</think> b"])
def test_what_does_not_begin_the_answer_as_a_thought_is_text(text: str) -> None:
    assert parse(text) == Parsed(text)


def test_a_text_that_shows_the_tags_is_read() -> None:
    (region,) = parse("<char><think></char><bbox>0, 0, 1, 1</bbox>").regions
    assert region.text == "<think>"


def test_a_thought_without_end_leaves_nothing_and_a_warning() -> None:
    assert parse("<think>well, EXIT") == Parsed("", (), ("<think> is never closed; the answer ends within it.",))


def test_offsets_of_warnings_count_the_thought() -> None:
    thought = "<think>so</think>\n"
    (warning,) = parse(thought + "a<delim>b").warnings
    assert f"at {len(thought) + 1} " in warning


@settings(derandomize=True, deadline=None, max_examples=300)
@given(PIECES, st.integers(1, 9))
def test_cuts_change_nothing(pieces: list[str], cut: int) -> None:
    text = "".join(pieces)
    assert in_pieces(text, cut) == parse(text)


@pytest.mark.parametrize("plain", ["<think>", " \n<think>a</think>b", "<think>x"])
def test_plain_text_that_begins_like_a_thought_survives_writing(plain: str) -> None:
    assert parse(render(Parsed(plain))).plain_text == plain


@pytest.mark.parametrize("between", ["", "\n", " ", "\n\n"], ids=repr)
def test_ocr_items_are_read_with_and_without_lines_between(between: str) -> None:
    parsed = parse(between.join(ITEMS))
    assert [region.text for region in parsed.regions] == ["EXIT", "서울", "A1"]
    assert [region.boxes[0].x1 for region in parsed.regions] == [0.1, 0.4, 0.7]
    assert parsed.warnings == ()
    assert parsed.plain_text == between.join(["EXIT", "서울", "A1"])
