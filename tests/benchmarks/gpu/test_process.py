"""A measurement in a process of its own: what fails there costs its own figures alone."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

from benchmarks.gpu.process import Tell, attempt, run_apart


def _fail(how: str, tell: Tell) -> None:
    """A figure, and then the end in one of several ways."""
    tell(("before",), 1)
    match how:
        case "raise":
            raise ValueError("no such kernel\nand more")
        case "signal":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "hang":
            threading.Event().wait()
    attempt(tell, ("part",), lambda: 1 / 0)
    print("a library's words")
    tell(("after",), 2)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("raise", "ValueError: no such kernel"),
        ("signal", "ended by signal 9"),
        ("exit", "ended with status 3"),
        ("hang", "it was stopped after 2 s"),
    ],
)
def test_a_step_that_fails_costs_its_own_figures_alone(how: str, expected: str) -> None:
    told: dict[tuple[str, ...], Any] = {}
    failure = run_apart(_fail, (how,), told.__setitem__, 2 if how == "hang" else 600)
    assert failure is not None
    assert expected in failure
    assert "\n" not in failure
    assert how == "hang" or told == {("before",): 1}  # 2 s may end before its imports do


def test_a_part_that_fails_is_left_out_and_the_rest_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    told: dict[tuple[str, ...], Any] = {}
    assert run_apart(_fail, ("not",), told.__setitem__, 600) is None
    assert told == {("before",): 1, ("part",): {"left_out": "ZeroDivisionError: division by zero"}, ("after",): 2}
    assert capfd.readouterr().out == "", "only the table goes to stdout"
