"""When a process that died is started again, and when that has no sense any more."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

MOST_DEATHS = 5
WITHIN_S = 600.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0


class Deaths:
    """The deaths of one process.

    Args:
        clock: Seconds that never go back, whatever the machine's time is set to.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque(maxlen=MOST_DEATHS)

    def count(self) -> float | None:
        """Count one; return how many seconds to wait before the next start, or None: it died too often."""
        now = self._clock()
        self._times.append(now)
        recent = [time_ for time_ in self._times if now - time_ <= WITHIN_S]
        if len(recent) >= MOST_DEATHS:
            return None
        return min(LONGEST_WAIT_S, FIRST_WAIT_S * 4.0 ** (len(recent) - 1))
