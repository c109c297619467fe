"""What other programs took of the processor during a measurement: on a busy machine, times are upper bounds."""

from __future__ import annotations

import os
import time
from pathlib import Path

from varco_runtime.system.processor import STAT, busy_seconds


class OtherLoad:
    """The load of other programs, counted from its making on."""

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._others_s = self._others()
        self._started = time.perf_counter()

    def cores(self) -> float | None:
        """Return how many cores other programs kept busy on average; None where the system does not say."""
        others_s, before_s = self._others(), self._others_s
        if others_s is None or before_s is None:
            return None
        return max(0.0, (others_s - before_s) / (time.perf_counter() - self._started))

    def _others(self) -> float | None:
        """Return the processor seconds of the whole machine but this process and the children it waited for."""
        busy_s = busy_seconds(self._stat)
        if busy_s is None:
            return None
        own = os.times()
        return busy_s - (own.user + own.system + own.children_user + own.children_system)
