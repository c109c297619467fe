"""What other programs took of the processor during a measurement: on a busy machine, times are upper bounds."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")


class Neighbours:
    """Counts from its making on."""

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._others_s = self._others()
        self._started = time.perf_counter()

    def cores(self) -> float | None:
        """How many cores other programs kept busy on average; None where the system does not say."""
        others_s, before_s = self._others(), self._others_s
        if others_s is None or before_s is None:
            return None
        return max(0.0, (others_s - before_s) / (time.perf_counter() - self._started))

    def _others(self) -> float | None:
        """Processor seconds of the whole machine but this process and the children it waited for.

        The first line of /proc/stat counts ticks of user, nice, system, idle, iowait, irq, softirq, steal (proc(5)).
        """
        try:
            user, nice, system, _, _, irq, softirq, steal = map(int, self._stat.read_text().split()[1:9])
        except (OSError, ValueError):
            return None
        own = os.times()
        busy_s = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return busy_s - (own.user + own.system + own.children_user + own.children_system)
