"""Together or one after the other, by tokens a second on a clock that counts work: what drafts save is a part of it."""

from __future__ import annotations

import pytest

from tests.doubles.slots_backend import Prices
from tests.makers.jobs import Bench, Question, alone
from varco_runtime.engine.costs import RowCosts, TokenCost, WorkCosts

ROWS = (2, 8)
FLOAT_ROW, INT8_ROW = 2.1, 0.4
"""What a further row adds to a step of one, on a CPU: with float activations two rows cost 3.1 times one."""


def long_questions(count: int, guesses: bool) -> list[Question]:
    """Questions whose answers do not end by themselves, so that several are under way most of the time."""
    asked = (Question((4, word, 5 + word % 7), max_new_tokens=56, guesses=guesses) for word in range(1, 400))
    return [question for _, question in zip(range(count), (one for one in asked if len(alone(one)) > 50), strict=False)]


def seconds(rows: int, row_s: float, guesses: bool, way: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """What answers cost with so many slots where they go the way `together`, `alone` or as is chosen."""
    with monkeypatch.context() as patch:
        if way != "chosen":
            patch.setattr(RowCosts, "go_together", lambda *_: way == "together")
        bench = Bench(rows, Prices(token_s=0.0, step_s=0.01, row_s=row_s * 0.01))
        asked = long_questions(3 * rows + 6, guesses)
        jobs = [bench.job(question, alone(question)) for question in asked]
        for job in jobs:
            bench.scheduler.submit(job)
        for job in jobs:
            bench.finish(job)
        assert [tuple(job.tokens) for job in jobs] == [alone(question) for question in asked]
        return bench.backend.clock()


@pytest.mark.parametrize("guesses", [False, True], ids=["plain", "drafts"])
@pytest.mark.parametrize("row_s", [0.0, INT8_ROW, 1.0, FLOAT_ROW])
@pytest.mark.parametrize("rows", ROWS)
def test_the_choice_costs_little_more_than_the_better_way(
    rows: int, row_s: float, guesses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are tried at the start, and the other one is looked at now and then."""
    ways = {way: seconds(rows, row_s, guesses, way, monkeypatch) for way in ("together", "alone", "chosen")}
    at_first = 0.01 * (4 * rows + 2 * (1 + row_s * (rows - 1)))  # four rounds apart and two together
    best = min(ways["together"], ways["alone"])
    assert ways["chosen"] <= best / 0.95 + at_first, ways
    if row_s == FLOAT_ROW:
        assert best == ways["alone"], "so float activations stay above 0.95 of one after the other"


def test_drafts_that_are_right_keep_answers_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows for 1.4 times one would be worth it for answers that take a token a step."""
    for guesses, expected in ((False, "together"), (True, "alone")):
        bench = Bench(2, Prices(token_s=0.0, step_s=0.01, row_s=0.004))
        asked = long_questions(4, guesses)
        jobs = [bench.job(question, alone(question)) for question in asked]
        for job in jobs:
            bench.scheduler.submit(job)
        for job in jobs:
            bench.finish(job)
        taken = [what for what, _ in bench.backend.log if what in ("together", "alone")]
        assert taken.count(expected) > 0.7 * len(taken), (guesses, taken)


def test_a_token_costs_what_all_steps_cost_by_what_they_gave() -> None:
    """Nine tokens and one in two steps of a second are 0.2 seconds each, and not the mean of 1/9 and 1."""
    cost = TokenCost()
    cost.count(1, 99.0)  # the first allocates
    for _ in range(200):
        cost.count(9, 1.0)
        cost.count(1, 1.0)
    assert cost.per_token_s == pytest.approx(0.2, rel=0.1)


def test_a_way_whose_costs_change_is_found_again() -> None:
    """What was dear for a while (another program had the cores) is looked at again."""
    costs = RowCosts()
    for _ in range(20):
        costs.count_alone(1, 0.01)
        costs.count_together(4, 0.1)
    taken = []
    for _ in range(1500):
        taken.append(costs.go_together(4, 4))
        if taken[-1]:
            costs.count_together(4, 0.012)
        else:
            for _ in range(4):
                costs.count_alone(1, 0.01)
    assert not any(taken[:50])
    assert sum(taken[-128:]) >= 126


def test_what_is_not_known_is_tried_in_the_least_piece() -> None:
    costs = WorkCosts()
    assert (costs.tiles_within(0.05, 9), costs.tokens_within(0.05, 100)) == (1, 16)
    assert (costs.tiles_within(float("inf"), 9), costs.tokens_within(float("inf"), 100)) == (9, 100)
    costs.count_tiles(2, 0.02)
    costs.count_tokens(16, 0.016)
    assert (costs.tiles_within(0.05, 9), costs.tokens_within(0.05, 100)) == (5, 48)
    assert (costs.tiles_within(0.0, 9), costs.tokens_within(-1.0, 100)) == (1, 16)
