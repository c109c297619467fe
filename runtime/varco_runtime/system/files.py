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


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
