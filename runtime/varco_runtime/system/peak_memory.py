"""The memory of this process while something runs, as Linux tells it."""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path


class PeakMemory:
    """The greatest resident memory while it is entered, looked at every 20 ms; 0 where the system does not tell."""

    def __init__(self) -> None:
        self.own_bytes = 0
        self.mapped_bytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.02):
            self._look()

    def _look(self) -> None:
        with contextlib.suppress(OSError):
            found = dict(
                re.findall(r"^(RssAnon|RssFile):\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
            )
            self.own_bytes = max(self.own_bytes, int(found.get("RssAnon", 0)) * 1024)
            self.mapped_bytes = max(self.mapped_bytes, int(found.get("RssFile", 0)) * 1024)
