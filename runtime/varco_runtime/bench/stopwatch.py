"""Times what is asked of a backend while somebody else, such as `Varco.ask`, does the asking."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from varco_runtime.backend import Backend
from varco_runtime.bench.budget import Clock


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a backend's method: when it began and ended by the clock, and its positional arguments."""

    name: str
    started: float
    ended: float
    args: tuple[Any, ...]

    @property
    def seconds(self) -> float:
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
