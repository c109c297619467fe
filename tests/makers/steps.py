"""How much work a call does, counted: the same on every machine, however fast or busy it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def count_steps(call: Callable[[], object]) -> int:
    """Return the lines of Python that a call runs, plus the characters of every text that it gives a local name.

    The characters stand for the time inside of built-in functions, which lines do not show: a loop that cuts what is
    left of a long text once per tag runs few lines and names quadratically many characters.

    Args:
        call: What to run, without arguments. It is run once, in this thread.
    """
    steps = 0

    def enter(_: FrameType, __: str, ___: object) -> Any:
        named: dict[str, str] = {}

        def trace(frame: FrameType, _: str, __: object) -> Any:
            nonlocal steps
            steps += 1
            for name, value in frame.f_locals.items():
                if isinstance(value, str) and named.get(name) is not value:
                    named[name] = value
                    steps += len(value)
            return trace

        return trace

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        call()
    finally:
        sys.settrace(before)
    return steps


def assert_linear(call: Callable[[int], object], size: int) -> None:
    """Check that twice the input costs at most a little more than twice the steps.

    Args:
        call: Takes a size and does the work for an input of that size.
        size: Large enough that what is done once does not matter.
    """
    call(size)  # what is imported, compiled or cached at the first call
    once, twice = (count_steps(lambda length=length: call(length)) for length in (size, 2 * size))
    assert twice < 2.2 * once, f"{once:,} steps for {size:,}, {twice:,} for twice as much: quadratic?"
