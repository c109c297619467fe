"""How far an export, an engine build or a quantization is, for whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

OnStep = Callable[[str, int, int], None]
"""Called with a phase of a build, its finished steps and all its steps."""


class Progress(Protocol):
    """What an export tells: a bar per component."""

    def component(self, name: str, steps: int) -> AbstractContextManager[Callable[[], None]]:
        """Begin a bar of `steps`; the value is called once per step."""


class EngineProgress(Protocol):
    """What a build of engines tells: a bar per engine."""

    def engine(self, name: str, target: str) -> AbstractContextManager[OnStep]:
        """Begin a bar; the value is called with the phase, its finished and all its steps."""


class QuantizeProgress(Protocol):
    """What a quantization tells: a bar per stage, and sentences."""

    def stage(self, name: str, steps: int, done: int = 0) -> AbstractContextManager[Callable[[], None]]:
        """Begin a bar of `steps`, `done` of them behind it already; the value is called once per step."""

    def note(self, text: str) -> None:
        """Say a sentence."""


class Silent:
    """Progress of every kind that nobody sees."""

    def component(self, name: str, steps: int) -> AbstractContextManager[Callable[[], None]]:
        return nullcontext(lambda: None)

    def engine(self, name: str, target: str) -> AbstractContextManager[OnStep]:
        return nullcontext(lambda phase, done, steps: None)

    def stage(self, name: str, steps: int, done: int = 0) -> AbstractContextManager[Callable[[], None]]:
        return nullcontext(lambda: None)

    def note(self, text: str) -> None:
        """Say nothing."""


SILENT = Silent()
