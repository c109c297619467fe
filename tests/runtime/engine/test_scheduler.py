"""Any mix of questions in any number of slots: each answer is the one it would be alone, in order and in time.

On a backend whose logits are a hash of what its cache holds, so that one wrong position changes the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles.slots_backend import (
    MAX_CONTEXT,
    NAN_TOKEN,
    RAISING_TOKEN,
    ChoosingSlotsBackend,
    Prices,
    SlotsBackend,
)
from tests.makers.constraints import Rule
from tests.makers.jobs import Bench, Question, alone
from varco_runtime.engine.job import Job
from varco_runtime.errors import BackendError, InputError
from varco_runtime.generation.sampling import SamplingSettings

SAMPLINGS = (
    SamplingSettings(),
    SamplingSettings(temperature=1.0, seed=3),
    SamplingSettings(temperature=0.7, top_k=5, seed=1),
    SamplingSettings(temperature=1.0, top_p=0.7, seed=2),
    SamplingSettings(temperature=1.0, min_p=0.2, seed=5),
    SamplingSettings(repetition_penalty=1.3),
    SamplingSettings(presence_penalty=1.5),
    SamplingSettings(frequency_penalty=-0.5),
    SamplingSettings(logit_bias=((7, 3.0), (8, -100.0))),
    SamplingSettings(top_logprobs=2),
)
KINDS = (SlotsBackend, ChoosingSlotsBackend)
RULES = (None, None, Rule(1), Rule(2))
words = st.lists(st.integers(1, 29), min_size=1, max_size=30).map(tuple)
questions = st.builds(
    Question,
    words=words,
    picture=st.none() | st.integers(0, 2),
    max_new_tokens=st.integers(1, 60),
    sampling=st.sampled_from(SAMPLINGS),
    guesses=st.booleans(),
    rule=st.sampled_from(RULES),
)


@dataclass(frozen=True, slots=True)
class Visit:
    """A question, the step before which it comes, and how many steps later its reader leaves, if at all."""

    question: Question
    arrives: int
    leaves_after: int | None


visits = st.builds(
    Visit,
    question=questions,
    arrives=st.integers(0, 25),
    leaves_after=st.none() | st.none() | st.integers(0, 20),
)
prices = st.builds(
    Prices,
    tile_s=st.sampled_from([0.001, 0.03, 0.2]),
    token_s=st.sampled_from([0.0001, 0.002, 0.05]),
    step_s=st.just(0.01),
    row_s=st.sampled_from([0.0, 0.004, 0.03]),
)


def play(bench: Bench, plan: list[Visit]) -> list[Job]:
    """Let everybody come and go, and step until nothing is left to do."""
    jobs = [bench.job(visit.question, alone(visit.question)) for visit in plan]
    for now in range(3000):
        for visit, job in zip(plan, jobs, strict=True):
            if visit.arrives == now:
                bench.scheduler.submit(job)
            if visit.leaves_after is not None and visit.arrives + visit.leaves_after == now:
                job.cancelled = True
        bench.scheduler.step()
        if now > 50 and all(job.has_left for job in jobs):
            return jobs
    raise AssertionError("it never ends")


@given(
    st.sampled_from([1, 2, 3, 4, 8]),
    prices,
    st.sampled_from([0.0, 0.01, 0.05]),
    st.lists(visits, min_size=1, max_size=10),
    st.sampled_from(KINDS),
)
@settings(max_examples=80, deadline=None)
def test_every_answer_is_the_one_it_would_be_alone(
    slots: int, costs: Prices, stall_s: float, plan: list[Visit], kind: type[SlotsBackend]
) -> None:
    bench = Bench(slots, costs, stall_s, kind=kind)
    for visit, job in zip(plan, play(bench, plan), strict=True):
        expected = alone(visit.question)
        got = tuple(job.tokens)
        assert job.error is None
        assert got == expected[: len(got)]
        assert job.cancelled or got == expected
    bench.assert_caches_hold_what_they_claim()
    bench.scheduler.step()
    assert bench.scheduler.slots == [None] * slots
    assert not bench.scheduler.waiting


@pytest.mark.full
@given(
    st.sampled_from([1, 2, 3, 4, 8]),
    prices,
    st.sampled_from([0.0, 0.01, 0.05]),
    st.lists(visits, min_size=8, max_size=40),
    st.sampled_from(KINDS),
)
@settings(max_examples=500, deadline=None)
def test_every_answer_is_the_one_it_would_be_alone_at_length(
    slots: int, costs: Prices, stall_s: float, plan: list[Visit], kind: type[SlotsBackend]
) -> None:
    inner = test_every_answer_is_the_one_it_would_be_alone.hypothesis.inner_test  # type: ignore[attr-defined]
    inner(slots, costs, stall_s, plan, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slots", [2, 4, 8])
@pytest.mark.parametrize("sampling", SAMPLINGS[1:], ids=str)
def test_sampling_in_any_slot_leaves_its_greedy_neighbors_alone(
    slots: int, sampling: SamplingSettings, kind: type[SlotsBackend]
) -> None:
    for place in range(slots):
        asked = [
            Question((4, 5, index + 6), max_new_tokens=12, sampling=sampling if index == place else SamplingSettings())
            for index in range(slots)
        ]
        jobs = play(Bench(slots, kind=kind), [Visit(question, 0, None) for question in asked])
        assert [tuple(job.tokens) for job in jobs] == [alone(question) for question in asked]


@pytest.mark.parametrize("slots", [2, 4, 8])
def test_a_constraint_in_any_slot_leaves_its_neighbors_alone(slots: int) -> None:
    for place in range(slots):
        asked = [
            Question((4, 5, index + 6), max_new_tokens=12, rule=Rule(3) if index == place else None)
            for index in range(slots)
        ]
        jobs = play(Bench(slots), [Visit(question, 0, None) for question in asked])
        assert [tuple(job.tokens) for job in jobs] == [alone(question) for question in asked]


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("fails_at", range(8))
def test_an_error_of_a_constraint_at_any_token_ends_that_answer_alone(slots: int, fails_at: int) -> None:
    for place in range(slots):
        asked = [
            Question((4, 5, index + 6), max_new_tokens=9, rule=Rule(3, fails_at if index == place else None))
            for index in range(slots)
        ]
        bench = Bench(slots)
        jobs = play(bench, [Visit(question, 0, None) for question in asked])
        for index, job in enumerate(jobs):
            if index == place:
                assert isinstance(job.error, InputError)
                assert len(job.tokens) <= fails_at
            else:
                assert tuple(job.tokens) == alone(asked[index])
        follow_up = bench.job(Question((7, 8)))
        bench.scheduler.submit(follow_up)
        assert tuple(bench.finish(follow_up)) == alone(Question((7, 8)))
        bench.assert_caches_hold_what_they_claim()


@pytest.mark.parametrize("sampling", [SamplingSettings(), SamplingSettings(temperature=2.0, seed=1)], ids=str)
@pytest.mark.parametrize("guesses", [False, True])
def test_what_is_forced_is_put_in_one_step_and_changes_no_token(sampling: SamplingSettings, guesses: bool) -> None:
    question = Question((4, 5, 6), max_new_tokens=41, sampling=sampling, rule=Rule(5), guesses=guesses)
    bench = Bench(2)
    job = bench.job(question, alone(question))
    bench.scheduler.submit(job)
    assert tuple(bench.finish(job)) == alone(question)
    assert len(job.tokens) == 41
    num_steps = sum(what == "alone" for what, _ in bench.backend.log)
    assert num_steps <= 40 - 20, "each of ten forced pairs is one step with what is chosen behind it"


def test_a_score_comes_with_every_token_however_many_a_step_gives() -> None:
    sampling = SamplingSettings(top_logprobs=1)
    for rule in (None, Rule(5)):
        question = Question((4, 5, 6), max_new_tokens=41, sampling=sampling, rule=rule, guesses=True)
        bench = Bench(1)
        job = bench.job(question, alone(question))
        bench.scheduler.submit(job)
        bench.finish(job)
        assert job.decoding is not None
        assert [score.token for score in job.decoding.sampler.scores] == list(job.tokens)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slots", [1, 2, 4, 8])
@pytest.mark.parametrize(("token", "message"), [(NAN_TOKEN, "finite numbers"), (RAISING_TOKEN, "injected")])
def test_what_fails_in_one_slot_changes_no_other_answer(
    slots: int, token: int, message: str, kind: type[SlotsBackend]
) -> None:
    for place in range(slots):
        asked = [Question((4, 5, token if index == place else index + 6), max_new_tokens=12) for index in range(slots)]
        bench = Bench(slots, kind=kind)
        jobs = play(bench, [Visit(question, 0, None) for question in asked])
        for index, job in enumerate(jobs):
            if index == place:
                assert isinstance(job.error, BackendError)
                assert message in str(job.error)
            else:
                assert tuple(job.tokens) == alone(asked[index])
        follow_up = bench.job(Question((7, 8)))
        bench.scheduler.submit(follow_up)
        assert tuple(bench.finish(follow_up)) == alone(Question((7, 8)))


def test_the_slot_of_a_cancelled_question_is_free_at_the_next_step() -> None:
    bench = Bench(2)
    first, second, third = (bench.job(Question((4, index), max_new_tokens=50)) for index in (5, 7, 8))
    for job in (first, second, third):
        bench.scheduler.submit(job)
    for _ in range(3):
        bench.scheduler.step()
    assert bench.scheduler.slots == [first, second]
    first.cancelled = True
    bench.scheduler.step()
    assert bench.scheduler.slots == [third, second]


def test_a_question_gets_the_free_slot_that_shares_most_with_it() -> None:
    bench = Bench(3)
    earlier = [Question((4, 5, 6, 7)), Question((8, 9, 10, 11)), Question((12, 13, 14, 15))]
    play(bench, [Visit(question, 0, None) for question in earlier])
    job = bench.job(Question((8, 9, 10, 20)))
    bench.scheduler.submit(job)
    bench.finish(job)
    assert (job.slot, job.num_cached) == (1, 6)


def test_a_picture_in_another_slot_is_neither_encoded_nor_prefilled_again() -> None:
    bench = Bench(4)
    asked = [Question((4, index), picture=1, max_new_tokens=30) for index in range(5, 9)]
    jobs = play(bench, [Visit(question, 0, None) for question in asked])
    assert [tuple(job.tokens) for job in jobs] == [alone(question) for question in asked]
    assert len({job.slot for job in jobs}) == 4
    assert sum(count for what, count in bench.backend.log if what == "tiles") == 3
    assert [job.num_cached for job in jobs[1:]] == [len(job.ids) - 1 for job in jobs[1:]]


def test_no_question_starves_and_none_overtakes() -> None:
    """Long pictures keep coming, more than there are slots."""
    bench = Bench(2)
    jobs = [bench.job(Question((4, 5 + index % 20), picture=index % 3, max_new_tokens=10)) for index in range(30)]
    admitted: list[Job] = []
    for index in range(3000):
        if index < len(jobs):
            bench.scheduler.submit(jobs[index])
        bench.scheduler.step()
        admitted += [job for job in bench.scheduler.slots if job is not None and job not in admitted]
        if all(job.has_left for job in jobs) and index >= len(jobs):
            break
    assert admitted == jobs


@pytest.mark.parametrize("stall_s", [0.0, 0.03, 0.1])
def test_answers_under_way_get_a_token_within_the_stall_limit(stall_s: float) -> None:
    """Between two of its tokens lie one step and work up to the limit, or a single tile or smallest chunk.

    Once the costs are known: the first tile and the first chunk show them.
    """
    costs = Prices(tile_s=0.02, token_s=0.001, step_s=0.01, row_s=0.001)
    bench = Bench(4, costs, stall_s)
    warm_up = bench.job(Question((4,) * 20, picture=0, max_new_tokens=2))
    bench.scheduler.submit(warm_up)
    bench.finish(warm_up)
    running = bench.job(Question((4, 5, 6), max_new_tokens=55))
    bench.scheduler.submit(running)
    bench.scheduler.step()
    longest_step_s = 4 * (costs.step_s + 3 * costs.row_s)
    gaps, last, seen = [], bench.backend.clock(), len(running.tokens)
    for seed in range(40):
        bench.scheduler.submit(bench.job(Question((7,) * 25, picture=seed % 3, max_new_tokens=3)))
        bench.scheduler.step()
        if running.has_left:
            break
        assert len(running.tokens) > seen, "a step without a token for an answer under way"
        seen = len(running.tokens)
        gaps.append(bench.backend.clock() - last)
        last = bench.backend.clock()
    assert len(gaps) > 10
    assert max(gaps) <= max(stall_s, costs.tile_s, 16 * costs.token_s) + longest_step_s + 1e-9


def test_without_answers_under_way_a_prompt_is_one_piece() -> None:
    bench = Bench(4)
    job = bench.job(Question((4,) * 40, picture=1, max_new_tokens=2))
    bench.scheduler.submit(job)
    bench.scheduler.step()
    assert bench.backend.log == [("tiles", 3), ("prefill", len(job.ids))]


def test_an_idle_slot_that_is_full_to_the_end_leaves_its_neighbors_alone() -> None:
    """An idle row of a step writes one position, which must exist."""
    bench = Bench(3)
    asked = [Question((4, 5, index), max_new_tokens=30) for index in (6, 7)]
    full = Job([*range(1, 30), *range(1, 30), 1, 2, 3, 4, 5, 6])
    assert len(full.ids) == MAX_CONTEXT
    first, last = (bench.job(question) for question in asked)
    for job in (first, full, last):
        bench.scheduler.submit(job)
    for job in (first, last):
        bench.finish(job)
    assert (first.slot, full.slot, last.slot) == (0, 1, 2)
    assert ("together", 3) in bench.backend.log
    assert [tuple(job.tokens) for job in (first, last)] == [alone(question) for question in asked]
    bench.assert_caches_hold_what_they_claim()


@pytest.mark.parametrize(("row_s", "expected"), [(0.001, "together"), (0.03, "alone")])
def test_answers_step_together_where_that_is_cheaper(row_s: float, expected: str) -> None:
    """On a CPU with float activations two rows together cost three times one."""
    bench = Bench(4, Prices(row_s=row_s))
    asked = [Question((4, index), max_new_tokens=55) for index in range(5, 20)]
    jobs = [bench.job(question) for question in asked if len(alone(question)) > 30][:4]
    for job in jobs:
        bench.scheduler.submit(job)
    while not any(job.has_left for job in jobs):
        bench.scheduler.step()
    taken = [what for what, _ in bench.backend.log if what in ("together", "alone")]
    other = {"together": "alone", "alone": "together"}[expected]
    assert taken.count(expected) > 3 * taken.count(other)
    assert other in taken, "the other way was never measured"


def test_an_answer_alone_takes_drafts_and_several_together_take_none() -> None:
    question = Question((4, 5, 6), max_new_tokens=40, guesses=True)
    bench = Bench(2)
    job = bench.job(question, alone(question))
    bench.scheduler.submit(job)
    bench.finish(job)
    assert sum(what == "alone" for what, _ in bench.backend.log) < len(job.tokens) - 5


def test_a_preparation_that_is_interrupted_begins_anew_for_whoever_waits_for_it() -> None:
    """Ctrl-C may come to a thread that prepares another one's question."""
    bench = Bench(2)
    question = Question((4, 5, 6), picture=1, max_new_tokens=10)
    job, prefill = bench.job(question), bench.backend.prefill

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    bench.backend.prefill = interrupt  # type: ignore[assignment, method-assign]
    bench.scheduler.submit(job)
    with pytest.raises(KeyboardInterrupt):
        bench.scheduler.step()
    bench.backend.prefill = prefill  # type: ignore[method-assign]
    assert tuple(bench.finish(job)) == alone(question)


@pytest.mark.parametrize("token", [NAN_TOKEN, RAISING_TOKEN])
def test_what_a_failed_answer_left_in_its_slot_is_not_trusted(token: int) -> None:
    bench = Bench(1)
    failed = bench.job(Question((4, 5, token)))
    bench.scheduler.submit(failed)
    bench.finish(failed)
    assert failed.error is not None
    assert bench.memory.sequence_in(0).ids == []
