"""A thousand requests of sixteen threads without a model, a third cancelled: nothing is left, and leaks are seen."""

from __future__ import annotations

import gc
import random
import threading
import tracemalloc
import weakref

import pytest

from tests.makers.jobs import Bench, Question, alone
from tests.makers.threads import in_threads
from varco_runtime.engine.driver import Engine
from varco_runtime.engine.job import Job
from varco_runtime.engine.scheduler import Scheduler

NUM_REQUESTS, NUM_THREADS, NUM_SLOTS = 1000, 16, 4
ASKED = tuple(Question((4, 5 + index, 6), index % 3 if index % 4 == 0 else None, 8) for index in range(12))


class Crowd:
    """Threads that ask an engine, and what they leave behind."""

    def __init__(self) -> None:
        self.bench = Bench(NUM_SLOTS)
        self.engine = Engine(self.bench.scheduler)
        self.num_cancelled = 0
        self._jobs: list[weakref.ref[object]] = []
        """Of each job the function that it alone holds, for a job itself takes no weak references."""

    def ask(self, num_requests: int, seed: int, kept: list[Job] | None = None) -> None:
        """Ask from all threads, a third of the requests until they are cancelled; `kept` is given what is to leak."""

        def work(thread: int) -> None:
            rng = random.Random(seed + thread)
            for _ in range(num_requests // NUM_THREADS + (thread < num_requests % NUM_THREADS)):
                question = ASKED[rng.randrange(len(ASKED))]
                job = self.bench.job(question)
                assert job.decode is not None
                self._jobs.append(weakref.ref(job.decode))
                leaves_after = rng.randrange(6) if rng.random() < 1 / 3 else None
                got: list[int] = []
                while (token := self.engine.next_token(job)) is not None:
                    got.append(token)
                    if leaves_after is not None and len(got) > leaves_after:
                        self.engine.cancel(job)
                        self.num_cancelled += 1
                        break
                assert tuple(got) == alone(question)[: len(got)]
                assert job.cancelled or tuple(got) == alone(question)
                if kept is not None and thread == 0:
                    kept.append(job)

        in_threads(work, NUM_THREADS)

    def jobs_left(self) -> int:
        """Return how many jobs are alive, once the slots of those that left are taken back."""
        self.bench.scheduler.step()
        gc.collect()
        return sum(job() is not None for job in self._jobs)

    def forget_counts(self) -> None:
        """Drop what is counted here and in the double."""
        self._jobs.clear()
        self.bench.backend.log.clear()
        gc.collect()

    def slots_left(self) -> list[Job]:
        """Return the jobs that hold a slot or wait for one."""
        self.bench.scheduler.step()
        return [job for job in (*self.bench.scheduler.slots, *self.bench.scheduler.waiting) if job is not None]


@pytest.fixture(scope="module", autouse=True)
def _answers() -> None:
    for question in ASKED:
        alone(question)


def test_a_thousand_requests_leave_nothing_behind() -> None:
    before, used = threading.active_count(), []
    tracemalloc.start()
    try:
        crowd = Crowd()
        for seed in (0, 100):
            crowd.ask(NUM_REQUESTS // 2, seed)
            assert crowd.jobs_left() == 0
            crowd.forget_counts()
            used.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert NUM_REQUESTS / 5 < crowd.num_cancelled < NUM_REQUESTS / 2
    assert crowd.slots_left() == []
    assert threading.active_count() == before
    assert used[1] - used[0] < 50_000, f"{used} bytes after half of the requests and all"


def test_jobs_that_are_kept_are_found() -> None:
    """The control: the same requests with a leak."""
    crowd, kept = Crowd(), list[Job]()
    crowd.ask(100, seed=0, kept=kept)
    assert crowd.jobs_left() >= len(kept) > 0


def test_a_slot_that_is_not_given_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the first slot that has an answer is lost with it, whichever it is."""
    release, lost = Scheduler._release, dict[int, Job]()

    def forgetful(self: Scheduler) -> None:
        held = {slot: job for slot, job in enumerate(self.slots) if job is not None}
        if held and not lost:
            lost.update([next(iter(held.items()))])
        release(self)
        for slot, job in lost.items():
            self.slots[slot] = job

    monkeypatch.setattr(Scheduler, "_release", forgetful)
    crowd = Crowd()
    crowd.ask(100, seed=0)
    assert len(crowd.slots_left()) == 1
    assert crowd.jobs_left() >= 1


def test_a_thread_that_stays_is_found() -> None:
    """The control: one reader never gets what it waits for."""
    crowd, before, go_on = Crowd(), threading.active_count(), threading.Event()
    thread = threading.Thread(target=go_on.wait)
    thread.start()
    try:
        crowd.ask(32, seed=0)
        assert threading.active_count() == before + 1
    finally:
        go_on.set()
        thread.join()
    assert threading.active_count() == before
