"""The asks that wait for a slot, and those that have one: first come first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from varco_serve.messages import Ask, Event


def _nothing() -> None:
    pass


@dataclass(slots=True, eq=False)
class Entry:
    """One ask on its way.

    Args:
        id: Its number.
        ask: What is asked; let go of once the worker has it.

    Attributes:
        events: What the worker said of it.
        on_end: Called once the worker has said all of it, or has died.
    """

    id: int
    ask: Ask | None
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    on_end: Callable[[], None] = _nothing


class Queue:
    """Entries that wait and entries that run.

    Args:
        max_waiting: How many may wait for a slot beside those that run.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self.slots = 0
        self.waiting: deque[Entry] = deque()
        self.running: dict[int, Entry] = {}
        self._last_id = 0

    @property
    def is_full(self) -> bool:
        """Return whether no further ask may wait."""
        free = max(0, self.slots - len(self.running))
        return len(self.waiting) >= self._max_waiting + free

    def add(self, ask: Ask) -> Entry:
        """Let an ask wait, and return its entry."""
        self._last_id += 1
        entry = Entry(self._last_id, ask)
        self.waiting.append(entry)
        return entry

    def next(self) -> Entry | None:
        """Give the entry that has waited longest a slot, and return it; None where none waits or no slot is free."""
        if not self.waiting or len(self.running) >= self.slots:
            return None
        entry = self.waiting.popleft()
        self.running[entry.id] = entry
        return entry

    def lost(self) -> list[Entry]:
        """Take away all entries that run, and return them."""
        entries = list(self.running.values())
        self.running.clear()
        return entries
