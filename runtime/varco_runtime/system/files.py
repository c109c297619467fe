"""Files written whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path, prefix: str | None = None, is_private: bool = False) -> Iterator[BinaryIO]:
    """Open a file to write to that becomes `path` at the end of the context, and vanishes if that is an error.

    Args:
        path: The file, replaced where it exists.
        prefix: How the name of the unfinished file beside it begins; by default it tells which file it will be.
        is_private: Whether this user alone may read the file, and not whom the umask allows.

    Raises:
        OSError: The folder or its disk refuses.
    """
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix or f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            yield file
        if not is_private:
            os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            os.unlink(temporary)


@contextmanager
def durable_file(path: Path, partial: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file to write to that becomes `path` once all of it is on the disk, and vanishes if that is an error.

    For what a power cut may not tear. The name of the unfinished file is fixed, so that a run overwrites what a killed
    one left; the caller sees to it that one process writes `path` at a time, and that the folder's names are synced.

    Args:
        path: The file, replaced where it exists.
        partial: The unfinished file in the same folder; by default `path` with `.partial` behind its name.

    Raises:
        OSError: The folder or its disk refuses.
    """
    partial = partial or path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            os.unlink(partial)


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
