"""The memory of which large files have been hashed: path, size, modification time, inode and the hash that was found.

It lies in the user's cache folder, so that the gigabytes of a bundle are hashed once and not at every start. What
others may have written there is not believed (`cache_folder.py`); losing the file costs one more hashing.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from varco_runtime.system.cache_folder import cache_folder, read_entry, write_entry

MAX_ENTRIES = 512
MAX_BYTES = 4 << 20
SETTLED_S = 2.0
"""A file written later than this before it was hashed is not remembered: a clock that ticks every 2 s (FAT) could hide
a change right after the hashing."""

_NAME = "verified.json"


class Remembered:
    """Hashes found earlier. A cache folder that cannot be read or written makes it forgetful, never an error."""

    def __init__(self, entries: dict[str, list[Any]]) -> None:
        self._entries = entries
        self._changed = False

    @classmethod
    def load(cls) -> Remembered:
        """Read the user's cache folder; nothing is remembered where that cannot be read or trusted."""
        entries: dict[str, list[Any]] = {}
        with contextlib.suppress(ValueError, RuntimeError):
            content = json.loads(read_entry(cache_folder() / _NAME, MAX_BYTES) or b"{}")
            if isinstance(content, dict):
                entries = {str(key): value for key, value in content.items() if isinstance(value, list)}
        return cls(entries)

    def knows(self, path: Path, info: os.stat_result, sha256: str) -> bool:
        """Return whether the file that `info` describes was found to have this hash."""
        return self._entries.get(os.path.abspath(path)) == self._facts(info, sha256)

    def remember(self, path: Path, info: os.stat_result, sha256: str, started_ns: int | None = None) -> None:
        """Remember the hash of a file, unless it was written just before it was hashed.

        Args:
            path: The file.
            info: What the system said of it before the hashing.
            sha256: The hash that was found.
            started_ns: When the hashing began, in nanoseconds since 1970; now if None.
        """
        started_ns = time.time_ns() if started_ns is None else started_ns
        if started_ns - max(info.st_mtime_ns, info.st_ctime_ns) < SETTLED_S * 1e9:
            return
        key = os.path.abspath(path)
        self._entries.pop(key, None)
        self._entries[key] = self._facts(info, sha256)  # newest last
        self._changed = True

    def save(self) -> None:
        """Write what was learned to the cache folder, the newest `MAX_ENTRIES`."""
        if not self._changed:
            return
        kept = dict(list(self._entries.items())[-MAX_ENTRIES:])
        with contextlib.suppress(RuntimeError):
            write_entry(cache_folder() / _NAME, json.dumps(kept).encode())

    @staticmethod
    def _facts(info: os.stat_result, sha256: str) -> list[Any]:
        # ctime too: a file whose content changed under a restored mtime is hashed again.
        return [info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev, sha256]
