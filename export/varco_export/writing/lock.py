"""Locks on files and folders: one process holds a lock, and it dies with that process."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from varco_runtime.errors import ExportError

LOCK_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
"""How a file that is there for its lock alone is opened."""


def try_lock(path: Path, flags: int = LOCK_FILE) -> int | None:
    """Lock a file, or a folder with the flag `os.O_RDONLY`.

    Returns:
        A descriptor that holds the lock until it is closed, or None where another process holds it.

    Raises:
        OSError: The file cannot be opened.
    """
    descriptor = os.open(path, flags, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def locked(path: Path, refusal: str, flags: int = LOCK_FILE) -> Iterator[None]:
    """Hold the lock of `path`.

    Raises:
        ExportError: Another process holds it; `refusal` is the message.
        OSError: The file cannot be opened.
    """
    descriptor = try_lock(path, flags)
    if descriptor is None:
        raise ExportError(refusal)
    try:
        yield
    finally:
        os.close(descriptor)
