"""Time: how much a benchmark may take, and how much the calls of a backend took while somebody else asked it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from varco_runtime.backend import Backend

Clock = Callable[[], float]


class Budget:
    """Time that may be spent, from its making on.

    Args:
        seconds: How much.
        clock: The time in seconds, from any origin.
    """

    def __init__(self, seconds: float, clock: Clock = time.perf_counter) -> None:
        self.seconds = seconds
        self.clock = clock
        self._end = clock() + seconds

    @property
    def left_s(self) -> float:
        """Return the seconds left; 0 once it is spent."""
        return max(0.0, self._end - self.clock())

    def reserve(self, seconds: float) -> None:
        """See to it that at least `seconds` are left: for what is measured after something that cannot be cut."""
        self._end = max(self._end, self.clock() + seconds)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a backend's method.

    Args:
        name: The method.
        started: When it began, by the clock in seconds.
        ended: When it ended.
        args: Its positional arguments.
    """

    name: str
    started: float
    ended: float
    args: tuple[Any, ...]

    @property
    def seconds(self) -> float:
        """Return how long it took."""
        return self.ended - self.started


@contextmanager
def watch(backend: Backend, clock: Clock) -> Iterator[list[Call]]:
    """Record every call from outside to the backend's public methods, in order, until the end of the context.

    A method is replaced on the object, not by another object around it, so that the backend keeps its type: what it
    can do (`GreedyBackend`, for one) is asked by type.
    """
    calls: list[Call] = []
    depth = 0

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            started = clock()
            try:
                return method(*args, **kwargs)
            finally:
                ended = clock()
                depth -= 1
                if not depth:
                    calls.append(Call(name, started, ended, args))

        return run

    before = dict(vars(backend))
    names = [name for name in dir(type(backend)) if not name.startswith("_") and name != "close"]
    methods = {name: getattr(backend, name) for name in names if callable(getattr(type(backend), name))}
    for name, method in methods.items():
        setattr(backend, name, timed(name, method))
    try:
        yield calls
    finally:
        for name in methods:
            if name in before:
                setattr(backend, name, before[name])
            else:
                delattr(backend, name)
