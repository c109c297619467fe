"""The engine alone: the same questions, asked of `Varco` in this process, by threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

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
    left = num_requests
    lock = threading.Lock()
    outcomes: list[Outcome] = []
    errors: list[BaseException] = []

    def call() -> None:
        nonlocal left
        while True:
            with lock:
                if left <= 0:
                    return
                left -= 1
                asked = question()
            try:
                outcomes.append(ask(varco, asked))
            except BaseException as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=call) for _ in range(num_callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return outcomes
