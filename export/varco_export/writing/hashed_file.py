"""A file whose size and sha256 are known when it is closed."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from types import TracebackType

from varco_export.writing.disk import disk_errors
from varco_runtime.bundle.manifest import FileFacts


class HashedFile:
    """A new file whose size and sha256 are known when it is closed. Writing errors become `ExportError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._digest = hashlib.sha256()
        with disk_errors(path):
            self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - closed by close()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:  # the file is about to be removed, and a second error would hide the first
            with contextlib.suppress(OSError):
                self._file.close()

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data` and return its length in bytes."""
        view = memoryview(data).cast("B")
        with disk_errors(self.path):
            done = 0
            while done < len(view):
                done += self._file.write(view[done:])
        self._digest.update(view)
        self.size += len(view)
        return len(view)

    def close(self) -> None:
        """Bring the file to the disk, where the last of it may not fit. Closing again does nothing."""
        if not self._file.closed:
            with disk_errors(self.path), self._file:
                os.fsync(self._file.fileno())

    def facts(self) -> FileFacts:
        """Close the file and return its size and hash."""
        self.close()
        return FileFacts(self.size, self._digest.hexdigest())
