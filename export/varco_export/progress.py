"""What an export tells whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """What a progress bar offers: a bar per component."""

    def component(self, name: str, steps: int) -> AbstractContextManager[Callable[[], None]]:
        """A bar of `steps`; the value is called once per step."""


class Silent:
    """Progress that nobody sees."""

    def component(self, name: str, steps: int) -> AbstractContextManager[Callable[[], None]]:
        return nullcontext(lambda: None)
