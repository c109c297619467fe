"""The time a benchmark may take."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]


class Budget:
    """`seconds` from its making on, by `clock` (in seconds, any origin)."""

    def __init__(self, seconds: float, clock: Clock = time.perf_counter) -> None:
        self.seconds = seconds
        self.clock = clock
        self._end = clock() + seconds

    @property
    def left_s(self) -> float:
        """Seconds left; 0 once it is spent."""
        return max(0.0, self._end - self.clock())

    def reserve(self, seconds: float) -> None:
        """See to it that at least `seconds` are left: for what is measured after something that cannot be cut."""
        self._end = max(self._end, self.clock() + seconds)
