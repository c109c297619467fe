"""The check of speed options: it lets equal models pass, and finds every kind of unequal one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.makers.neutral import (
    MIN_MARGIN,
    NotAFixtureError,
    Question,
    assert_neutral,
    clear_questions,
    smallest_margin,
)
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs

NUM_TOKENS = 24


def pictures() -> list[Image.Image]:
    """Two of the same size."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(2)]


@pytest.fixture(scope="module")
def make(tiny_bundle: Path) -> Callable[[], Varco]:
    return lambda: Varco.load(tiny_bundle, max_context=512, threads=1)


@pytest.fixture(scope="module")
def questions(make: Callable[[], Varco]) -> list[Question]:
    """Two about each picture and two about none, in turn."""
    found = [
        clear_questions(make, (Question(image, f"What is number {n}?") for n in range(40)), NUM_TOKENS, 2)
        for image in (*pictures(), None)
    ]
    return [question for turn in zip(*found, strict=True) for question in turn]


def test_a_model_is_neutral_to_itself(make: Callable[[], Varco], questions: list[Question]) -> None:
    assert len(questions) == 6
    assert_neutral(make, make, questions, NUM_TOKENS)


def test_one_wrong_late_token_is_found(make: Callable[[], Varco], questions: list[Question]) -> None:
    def make_broken() -> Varco:
        varco = make()
        first: list[int] = []
        step = varco.backend.decode_steps  # type: ignore[attr-defined]

        def wrong_at_the_end(token_ids: Sequence[int], position: int) -> np.ndarray:
            first.append(position)
            rows: np.ndarray = step(token_ids, position)
            last = first[0] + NUM_TOKENS - 2 - position  # the row that the last token is chosen from
            if 0 <= last < len(rows):
                rows[last, int(np.argmax(rows[last]))] = -np.inf
            return rows

        varco.backend.decode_steps = wrong_at_the_end  # type: ignore[attr-defined]
        return varco

    with pytest.raises(AssertionError, match=rf"Question 0 .* changes token {NUM_TOKENS - 1} from \d+ to \d+"):
        assert_neutral(make_broken, make, questions, NUM_TOKENS)


def test_features_of_another_picture_are_found(make: Callable[[], Varco], questions: list[Question]) -> None:
    """A feature cache whose key is the picture's shape."""

    def make_broken() -> Varco:
        varco = make()
        encode = varco.backend.encode
        kept: dict[tuple[int, ...], Any] = {}

        def encode_once(pixel_values: np.ndarray) -> Any:
            if pixel_values.shape not in kept:
                kept[pixel_values.shape] = encode(pixel_values)
            return kept[pixel_values.shape]

        varco.backend.encode = encode_once  # type: ignore[method-assign]
        return varco

    with pytest.raises(AssertionError, match=r"Question 1 .* the option changes token"):
        assert_neutral(make_broken, make, questions, NUM_TOKENS)


def test_a_prefix_that_was_not_the_same_is_found(make: Callable[[], Varco], questions: list[Question]) -> None:
    """Reuse of cached positions that hold another question's."""

    def make_broken() -> Varco:
        varco = make()
        prefill = varco.backend.prefill

        def prefill_too_little(inputs: PromptInputs, start: int, num_logits: int = 1) -> np.ndarray:
            return prefill(inputs, min(start + 8 * (start > 0), len(inputs.ids) - num_logits), num_logits)

        varco.backend.prefill = prefill_too_little  # type: ignore[method-assign]
        return varco

    with pytest.raises(AssertionError, match="the option changes token"):
        assert_neutral(make_broken, make, questions, NUM_TOKENS)


def test_an_answer_that_ends_early_is_found(make: Callable[[], Varco], questions: list[Question]) -> None:
    def make_broken() -> Varco:
        varco = make()
        ask = varco.ask
        varco.ask = lambda *args, **options: ask(*args, **{**options, "max_new_tokens": NUM_TOKENS - 1})  # type: ignore[method-assign,misc,typeddict-item]
        return varco

    with pytest.raises(AssertionError, match=f"changes token count from {NUM_TOKENS} to {NUM_TOKENS - 1}"):
        assert_neutral(make_broken, make, questions, NUM_TOKENS)


def test_a_question_near_a_tie_is_no_fixture(make: Callable[[], Varco], questions: list[Question]) -> None:
    def make_tied() -> Varco:
        varco = make()
        score = varco.score

        def tied(*args: Any, **options: Any) -> np.ndarray:
            logits = score(*args, **options)
            second, first = np.argsort(logits[-1])[-2:]
            logits[-1, second] = logits[-1, first] - MIN_MARGIN / 2
            return logits

        varco.score = tied  # type: ignore[method-assign]
        return varco

    with pytest.raises(NotAFixtureError, match=r"Question 0 .* has margin 5\.0e-03 < 1\.0e-02"):
        assert_neutral(make, make_tied, questions, NUM_TOKENS)
    with pytest.raises(NotAFixtureError, match="0 of the candidates are fixtures, expected 1"):
        clear_questions(make_tied, questions, NUM_TOKENS, 1)


def test_a_penalised_or_short_answer_is_no_fixture(make: Callable[[], Varco], questions: list[Question]) -> None:
    varco, question = make(), questions[0]
    penalised = varco.ask(question.image, question.prompt, max_new_tokens=NUM_TOKENS, repetition_penalty=5.0)
    with pytest.raises(NotAFixtureError, match="not answered with the likeliest tokens"):
        smallest_margin(varco, question, penalised, NUM_TOKENS)
    with pytest.raises(NotAFixtureError, match=f"{NUM_TOKENS} of {NUM_TOKENS + 1} tokens"):
        smallest_margin(varco, question, question.ask(varco, NUM_TOKENS), NUM_TOKENS + 1)


def test_the_margin_is_the_gap_of_the_two_largest_logits(make: Callable[[], Varco], questions: list[Question]) -> None:
    varco, question = make(), questions[0]
    answer = question.ask(varco, NUM_TOKENS)
    logits = np.sort(varco.score(question.image, question.prompt, answer.token_ids), axis=1)
    expected = float((logits[:, -1] - logits[:, -2]).min())
    assert smallest_margin(varco, question, answer, NUM_TOKENS) == pytest.approx(expected)
    assert expected >= MIN_MARGIN


def test_no_question_proves_nothing(make: Callable[[], Varco]) -> None:
    with pytest.raises(AssertionError, match="no question"):
        assert_neutral(make, make, [], NUM_TOKENS)
