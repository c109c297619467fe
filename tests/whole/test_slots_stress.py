"""Sixteen threads ask at once, a third of them leave early: nothing is lost, nothing stays behind."""

from __future__ import annotations

import gc
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from tests.makers.inputs import noise_picture
from tests.makers.threads import in_threads
from varco_runtime import Varco
from varco_runtime.engine.job import Job
from varco_runtime.stream import Stream

NUM_THREADS, NUM_SLOTS, NUM_TOKENS = 16, 4, 6
PICTURE = noise_picture(3)
QUESTIONS = ((None, "Hello"), (PICTURE, "What is this?"), (None, "Say it again and again."), (PICTURE, "And why?"))


class Counted:
    """The jobs that were made and are still there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        self._live: list[weakref.finalize] = []
        init = Stream.__init__

        def counting(stream: Stream, *args: object) -> None:
            init(stream, *args)  # type: ignore[arg-type]
            self.made += 1
            self._live.append(weakref.finalize(stream, int))

        monkeypatch.setattr(Stream, "__init__", counting)

    @property
    def num_live(self) -> int:
        gc.collect()
        return sum(one.alive for one in self._live)


def work(varco: Varco, num_requests: int, kept: list[object] | None) -> None:
    """Ask from all threads; `kept` is given what is to leak."""
    expected = [varco.ask(*question, max_new_tokens=NUM_TOKENS).token_ids for question in QUESTIONS]

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(num_requests // NUM_THREADS + (seed < num_requests % NUM_THREADS)):
            index = rng.randrange(len(QUESTIONS))
            stream = varco.stream(*QUESTIONS[index], max_new_tokens=NUM_TOKENS)
            leaves_after = rng.randrange(NUM_TOKENS) if rng.random() < 1 / 3 else None
            for count, _piece in enumerate(stream):
                if count == leaves_after:
                    stream.cancel()
            got = stream.answer.token_ids
            assert got == expected[index][: len(got)]
            assert stream.answer.finish_reason == "cancelled" or got == expected[index]
            if kept is not None and seed == 0:
                kept.append(stream)

    in_threads(ask, NUM_THREADS)


def left_behind(varco: Varco) -> list[Job]:
    """The jobs that hold a slot or wait for one, after a last question has let the slots be taken back."""
    varco.ask(None, "x", max_new_tokens=1)
    varco.session.engine.scheduler.step()
    scheduler = varco.session.engine.scheduler
    return [job for job in (*scheduler.slots, *scheduler.waiting) if job is not None]


@pytest.mark.parametrize("num_requests", [60, pytest.param(1000, marks=pytest.mark.full)])
def test_requests_of_many_threads_leave_nothing_behind(
    tiny_bundle: Path, num_requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    varco = Varco.load(tiny_bundle, threads=1, slots=NUM_SLOTS)
    counted, before = Counted(monkeypatch), threading.active_count()
    work(varco, num_requests, None)
    assert counted.made == num_requests + len(QUESTIONS)
    assert left_behind(varco) == []
    assert counted.num_live == 0
    assert threading.active_count() <= before  # of earlier tests some may end meanwhile


def test_the_count_finds_streams_that_are_kept(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same requests with a leak."""
    varco = Varco.load(tiny_bundle, threads=1, slots=NUM_SLOTS)
    counted, kept = Counted(monkeypatch), list[object]()
    work(varco, 60, kept)
    assert counted.num_live == len(kept) > 0


PROGRAM = """
import sys, threading
from varco_runtime import Varco
varco = Varco.load(sys.argv[1], threads=1, slots=2)
def ask():
    while True:
        varco.ask(None, "Hello", max_new_tokens=50)
for _ in range(3):
    threading.Thread(target=ask, daemon=True).start()
print("ready", flush=True)
ask()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process on Windows")
@pytest.mark.parametrize("attempt", [1, *[pytest.param(n, marks=pytest.mark.full) for n in range(2, 12)]])
def test_ctrl_c_ends_a_process_whose_threads_are_answered(tiny_bundle: Path, attempt: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tiny_bundle)], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep((attempt - 1) * 0.037)  # another moment each time: in the midst of a step, a choice, a change of turns
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in said  # a thread whose answer the main one was making may say so behind it
    # Python ends itself by the signal, or with 1 where another thread ran an `exec` in between.
    assert process.returncode in (-signal.SIGINT, 1)
