"""Speed options must not change a greedy answer: the one check that all of them share.

Two ways to the same numbers round differently, so tokens can only be held identical where no two candidates are near a
tie. `assert_neutral` therefore refuses a question as a fixture unless the margin of every token of its answer is clear,
by teacher-forced logits (`Varco.score`) of a model without the option. `clear_questions` finds such questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from varco_runtime import Answer, Varco
from varco_runtime.picture.loading import Source

MIN_MARGIN = 1e-2
"""Least gap between the two largest logits at every position: some 100 times what two orders of summation in fp32
differ by on the tiny models, whose logits have a standard deviation of 4."""


@dataclass(frozen=True, slots=True)
class Question:
    """What `Varco.ask` is asked."""

    image: Source | None
    prompt: str
    system: str | None = None

    def ask(self, varco: Varco, num_tokens: int) -> Answer:
        return varco.ask(self.image, self.prompt, system=self.system, max_new_tokens=num_tokens)


class NotAFixtureError(AssertionError):
    """The question proves nothing: its answer is too short, or near a tie somewhere."""


def assert_neutral(
    make_varco_with: Callable[[], Varco],
    make_varco_without: Callable[[], Varco],
    questions: Sequence[Question],
    num_tokens: int,
    min_margin: float = MIN_MARGIN,
) -> None:
    """A model with the option answers all `questions`, asked one after the other, as models without it do.

    The model with the option answers them in turn, so that whatever it keeps between questions is used. Each is
    answered without the option by a model of its own, which has nothing to keep. Every answer has `num_tokens` tokens
    with a margin of at least `min_margin`, or `NotAFixtureError` is raised; tokens, text and finish reason are equal.
    """
    assert questions, "There is no question to compare."
    optimised = make_varco_with()
    for index, question in enumerate(questions):
        expected = question.ask(make_varco_without(), num_tokens)
        margin = smallest_margin(make_varco_without(), question, expected, num_tokens)
        if margin < min_margin:
            raise NotAFixtureError(
                f"Question {index} ({question.prompt!r}) has margin {margin:.1e} < {min_margin:.1e}."
            )
        got = question.ask(optimised, num_tokens)
        assert got.token_ids == expected.token_ids, (
            f"Question {index} ({question.prompt!r}): the option changes token {_first_difference(got, expected)}"
        )
        assert (got.text, got.finish_reason) == (expected.text, expected.finish_reason), f"Question {index}"


def smallest_margin(varco: Varco, question: Question, answer: Answer, num_tokens: int) -> float:
    """The least gap between the largest logit and the next one over the answer's positions.

    Raises `NotAFixtureError` for an answer of fewer than `num_tokens` tokens, or whose tokens are not the likeliest.
    """
    if len(answer.token_ids) < num_tokens:
        raise NotAFixtureError(f"{question.prompt!r} is answered with {len(answer.token_ids)} of {num_tokens} tokens.")
    logits = varco.score(question.image, question.prompt, answer.token_ids, question.system)
    if tuple(np.argmax(logits, axis=1)) != answer.token_ids:
        raise NotAFixtureError(f"{question.prompt!r} is not answered with the likeliest tokens: a penalty, or a tie.")
    second, first = np.partition(logits, -2, axis=1)[:, -2:].T
    return float((first - second).min())


def clear_questions(
    make_varco: Callable[[], Varco],
    candidates: Iterable[Question],
    num_tokens: int,
    count: int,
    min_margin: float = MIN_MARGIN,
) -> list[Question]:
    """The first `count` candidates that are fixtures. Raises `NotAFixtureError` if there are fewer."""
    found: list[Question] = []
    varco = make_varco()
    for question in candidates:
        answer = question.ask(varco, num_tokens)
        try:
            margin = smallest_margin(varco, question, answer, num_tokens)
        except NotAFixtureError:
            continue
        if margin >= min_margin:
            found.append(question)
        if len(found) == count:
            return found
    raise NotAFixtureError(f"{len(found)} of the candidates are fixtures, expected {count}. Offer more.")


def _first_difference(got: Answer, expected: Answer) -> str:
    pairs = enumerate(zip(got.token_ids, expected.token_ids, strict=False))
    place = next((index for index, (one, other) in pairs if one != other), None)
    if place is None:
        return f"count from {len(expected.token_ids)} to {len(got.token_ids)}"
    return f"{place} from {expected.token_ids[place]} to {got.token_ids[place]}"
