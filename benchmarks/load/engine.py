"""The engine alone: the same questions, asked of `Varco` in this process, by threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from benchmarks.load.client import Outcome
from benchmarks.load.questions import Question
from varco_runtime import Varco


def ask(varco: Varco, question: Question) -> Outcome:
    """Ask one question and note when its pieces came.

    Args:
        varco: The engine.
        question: What is asked.
    """
    outcome = Outcome(status=200, started_s=time.perf_counter())
    stream = varco.stream(question.picture, question.prompt, max_new_tokens=question.max_tokens, ignore_eos=True)
    for piece in stream:
        if piece.text:
            outcome.pieces_s.append(time.perf_counter())
            outcome.text += piece.text
    outcome.ended_s = time.perf_counter()
    outcome.num_tokens = stream.answer.usage.completion_tokens
    return outcome


def ask_from_threads(
    varco: Varco, question: Callable[[], Question], num_callers: int, num_requests: int
) -> list[Outcome]:
    """Let threads ask one question after the other, and return what became of all.

    Args:
        varco: The engine.
        question: Makes the next question.
        num_callers: Threads.
        num_requests: Questions of all threads together.
    """
    lock = threading.Lock()

    def call(_: int) -> Outcome:
        with lock:
            asked = question()
        return ask(varco, asked)

    with ThreadPoolExecutor(num_callers) as pool:
        return list(pool.map(call, range(num_requests)))
