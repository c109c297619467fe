"""Output that is whole or absent: files hashed while they are written, folders renamed into place when complete."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from varco_runtime.bundle import FileFacts
from varco_runtime.errors import ExportError

_LOCK = ".lock"


class HashedFile:
    """A new file whose size and sha256 are known when it is closed. Writing errors become `ExportError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._digest = hashlib.sha256()
        self._facts: FileFacts | None = None
        with _one_line(path):
            self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - closed by close()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data` and return its length in bytes."""
        view = memoryview(data)
        with _one_line(self.path):
            done = 0
            while done < len(view):
                done += self._file.write(view[done:])
        self._digest.update(view)
        self.size += len(view)
        return len(view)

    def close(self) -> None:
        if self._facts is None:
            with _one_line(self.path), self._file:
                os.fsync(self._file.fileno())
            self._facts = FileFacts(self.size, self._digest.hexdigest())

    def facts(self) -> FileFacts:
        self.close()
        assert self._facts is not None
        return self._facts


@contextlib.contextmanager
def whole_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary sibling of `target` to fill; rename it to `target` at the end, remove it on an error.

    What a killed run left behind beside the same target is removed first: each temporary folder holds a lock that dies
    with its process. Raises `ExportError` if `target` exists and `overwrite` is not set.
    """
    target = Path(os.path.abspath(target))
    if os.path.lexists(target) and not overwrite:
        raise ExportError(f"{target} exists already. Choose another output folder, remove it, or add --overwrite.")
    with _one_line(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{target.name}.partial-"
        _reclaim(target.parent, prefix)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        lock = open(folder / _LOCK, "wb")  # noqa: SIM115 - held until the folder is in place or gone
    try:
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            folder.chmod(0o755)
            yield folder
            with _one_line(target):
                _put_in_place(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _put_in_place(folder: Path, target: Path) -> None:
    (folder / _LOCK).unlink()
    _sync_folder(folder)
    if os.path.lexists(target):
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        os.replace(target, old / "old")
        os.replace(folder, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(folder, target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reclaim(parent: Path, prefix: str) -> None:
    """Remove the temporary folders of runs that are no more."""
    for leftover in parent.iterdir():
        if not leftover.name.startswith(prefix) or not leftover.is_dir() or leftover.is_symlink():
            continue
        with contextlib.suppress(OSError), open(leftover / _LOCK, "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExportError(
            f"{path} could not be written: {error.strerror or error}. Expected a writable folder with enough free space; "
            "free some space or choose another output folder, then export again."
        ) from error
