"""Stop strings: the text ends before the first of them, however it comes in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from varco_runtime.errors import UsageError
from varco_runtime.generation.stopping import StopStrings


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    filter_ = StopStrings(stops)
    text = "".join([filter_.feed(piece) for piece in pieces] + [filter_.finish()])
    return text, filter_.stopped


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.lists(st.text("abc", max_size=5), max_size=8))
def test_the_result_does_not_depend_on_the_pieces(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    assert run(stops, pieces) == run(stops, list(text)) == run(stops, [text])


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.text("ab", min_size=1, max_size=4), st.text("abc", max_size=20))
def test_text_is_cut_before_the_first_stop_string(stop: str, text: str) -> None:
    assert run([stop], list(text)) == (text.partition(stop)[0], stop if stop in text else None)


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_clear() -> None:
    stops = StopStrings(["END"])
    assert [stops.feed("a E"), stops.feed("N"), stops.feed("x")] == ["a ", "", "ENx"]


def test_nothing_comes_after_a_stop_string() -> None:
    stops = StopStrings(["."])
    assert [stops.feed("a. b"), stops.feed("c"), stops.finish()] == ["a", "", ""]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="has 0 characters, expected 1 to 1,024"):
        StopStrings([""])


def test_too_many_stop_strings_are_refused() -> None:
    with pytest.raises(UsageError, match="65 stop strings"):
        StopStrings(["x"] * 65)
