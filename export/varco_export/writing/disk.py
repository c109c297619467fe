"""What the disk refuses, as one line that says what to do, and what must be on it before something else happens."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from varco_runtime.errors import ExportError

EXPORT_AGAIN = (
    "Expected a writable folder with enough free space; free some space or choose another output folder, then export "
    "again."
)


@contextlib.contextmanager
def disk_errors(path: Path, advice: str = EXPORT_AGAIN) -> Iterator[None]:
    """Turn an `OSError` into an `ExportError` that names `path` and ends in `advice`."""
    try:
        yield
    except OSError as error:
        raise ExportError(f"{path} could not be written: {error.strerror or error}. {advice}") from error


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk. Some file systems cannot sync a folder.

    Raises:
        OSError: The disk refuses, or `path` cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)
