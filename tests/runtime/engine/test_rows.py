"""A step of several answers, chosen by the host or the device: what leaves or fails in one row is its own alone."""

from __future__ import annotations

import pytest

from tests.doubles.slots_backend import NAN_TOKEN, ChoosingSlotsBackend
from tests.makers.jobs import Bench, Question, alone
from tests.runtime.engine.test_scheduler import KINDS, Visit, play
from varco_runtime.errors import BackendError
from varco_runtime.generation.sampling import SamplingSettings


@pytest.mark.parametrize("place", range(4))
def test_a_cancel_in_any_slot_changes_no_other_answer(place: int) -> None:
    asked = [Question((4, 5, index + 6), max_new_tokens=20) for index in range(4)]
    for kind in KINDS:
        visits_ = [Visit(question, 0, 5 if index == place else None) for index, question in enumerate(asked)]
        jobs = play(Bench(4, kind=kind), visits_)
        for index, job in enumerate(jobs):
            expected = alone(asked[index])
            assert tuple(job.tokens) == (expected[: len(job.tokens)] if index == place else expected)


def test_a_failed_step_of_rows_draws_no_number_twice() -> None:
    """Answers that then go on one after the other draw what they would have drawn."""
    sampling = SamplingSettings(temperature=1.0, seed=9)
    asked = [Question((4, 5, index + 6), max_new_tokens=20, sampling=sampling) for index in range(4)]
    bench = Bench(4, kind=ChoosingSlotsBackend)
    rows, calls = bench.backend.decode_rows, iter(range(1000))

    def sometimes(*args: object) -> object:
        if next(calls) % 3 == 1:
            raise BackendError("injected")
        return rows(*args)  # type: ignore[arg-type]

    bench.backend.decode_rows = sometimes  # type: ignore[assignment, method-assign]
    jobs = play(bench, [Visit(question, 0, None) for question in asked])
    assert next(calls) > 4
    assert [tuple(job.tokens) for job in jobs] == [alone(question) for question in asked]


def test_an_idle_slot_that_is_not_finite_is_taken_for_empty() -> None:
    """Nobody reads its row, and what was cleared on the device must not be taken for a prompt's beginning."""
    bench = Bench(3, kind=ChoosingSlotsBackend)
    asked = [Question((4, 5, index + 6), max_new_tokens=5 if index == 0 else 40) for index in range(3)]
    jobs = [bench.job(question) for question in asked]
    for job in jobs:
        bench.scheduler.submit(job)
    bench.finish(jobs[0])
    assert bench.memory.sequence_in(0).ids
    bench.backend.cache[0, 1] = NAN_TOKEN
    for _ in range(8):
        bench.scheduler.step()
    assert bench.memory.sequence_in(0).ids == []
    for job, question in zip(jobs, asked, strict=True):
        assert tuple(bench.finish(job)) == alone(question)
