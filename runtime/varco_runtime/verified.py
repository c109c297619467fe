"""The memory of which large files have been hashed: path, size, modification time, inode and the hash that was found.

It lies in the user's cache folder, so that the gigabytes of a bundle are hashed once and not at every start. Whoever
can write there could as well replace this program; losing the file costs one more hashing.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

MAX_ENTRIES = 512
MAX_BYTES = 4 << 20
SETTLED_S = 2.0
"""A file written later than this before it was hashed is not remembered: a clock that ticks every 2 s (FAT) could hide
a change right after the hashing."""


def cache_folder() -> Path:
    """`$VARCO_EDGE_CACHE`, else `varco-edge` in `$XDG_CACHE_HOME` or `~/.cache`; `RuntimeError` if there is no home."""
    chosen = os.environ.get("VARCO_EDGE_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "varco-edge"


class Remembered:
    """Hashes found earlier. A cache folder that cannot be read or written makes it forgetful, never an error."""

    def __init__(self, entries: dict[str, list[Any]]) -> None:
        self._entries = entries
        self._changed = False

    @classmethod
    def load(cls) -> Remembered:
        entries: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            path = cache_folder() / "verified.json"
            if path.is_file() and path.stat().st_size <= MAX_BYTES:
                content = json.loads(path.read_text(encoding="utf-8"))
                if isinstance(content, dict):
                    entries = {str(key): value for key, value in content.items() if isinstance(value, list)}
        return cls(entries)

    def knows(self, path: Path, info: os.stat_result, sha256: str) -> bool:
        return self._entries.get(os.path.abspath(path)) == self._facts(info, sha256)

    def remember(self, path: Path, info: os.stat_result, sha256: str, started_ns: int | None = None) -> None:
        """Remember what was found. `info` is from before the hashing, which began at `started_ns` (now if None)."""
        started_ns = time.time_ns() if started_ns is None else started_ns
        if started_ns - max(info.st_mtime_ns, info.st_ctime_ns) < SETTLED_S * 1e9:
            return
        key = os.path.abspath(path)
        self._entries.pop(key, None)
        self._entries[key] = self._facts(info, sha256)  # newest last
        self._changed = True

    def save(self) -> None:
        if not self._changed:
            return
        kept = dict(list(self._entries.items())[-MAX_ENTRIES:])
        with contextlib.suppress(OSError, RuntimeError):
            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, name = tempfile.mkstemp(dir=folder, prefix="verified.")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    json.dump(kept, file)
                os.replace(name, folder / "verified.json")
            except OSError:
                os.unlink(name)

    @staticmethod
    def _facts(info: os.stat_result, sha256: str) -> list[Any]:
        # ctime too: a file whose content changed under a restored mtime is hashed again.
        return [info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev, sha256]
