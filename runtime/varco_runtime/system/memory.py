"""Memory: of this process, and of the machine or container, as far as the system tells."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from pathlib import Path

STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")
_FAR_TOO_MUCH = 1 << 60  # what cgroups report where there is no limit


class PeakMemory:
    """The greatest resident memory while it is entered, looked at every 20 ms; 0 where the system does not tell.

    `own_bytes` is what the process holds for itself, `mapped_bytes` what of files it has mapped.
    """

    def __init__(self) -> None:
        self.own_bytes = 0
        self.mapped_bytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._measure()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.02):
            self._measure()

    def _measure(self) -> None:
        with contextlib.suppress(OSError):
            sizes = _sizes(STATUS)
            self.own_bytes = max(self.own_bytes, sizes.get("RssAnon", 0))
            self.mapped_bytes = max(self.mapped_bytes, sizes.get("RssFile", 0))


def peak_memory_bytes() -> int | None:
    """Return the peak resident memory of this process, mapped files included; None where the system does not say.

    On Linux VmHWM, which begins with the program; `ru_maxrss` would begin with the process that started it.
    """
    with contextlib.suppress(OSError, KeyError):
        return _sizes(STATUS)["VmHWM"]
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def machine_memory() -> tuple[int | None, int | None]:
    """Return the bytes in all and available, of the machine or of the container if that has less; None: unknown."""
    try:
        facts = _sizes(MEMINFO)
        total, available = facts["MemTotal"], facts["MemAvailable"]
    except (OSError, KeyError):
        return None, None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return total, available
    if limit >= min(total, _FAR_TOO_MUCH):
        return total, available
    return limit, min(available, max(0, limit - used))


def _sizes(path: Path) -> dict[str, int]:
    """Return the sizes in a file of `name: number kB` lines, in bytes."""
    return {
        name: int(number) * 1024 for name, number in re.findall(r"^(\w+):\s+(\d+) kB", path.read_text(), re.MULTILINE)
    }
