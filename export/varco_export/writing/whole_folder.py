"""Output that is whole or absent: folders renamed into place when complete.

    out/.bundle.varco-lock     held by the run that writes out/bundle, empty
    out/.bundle.varco-partial  what it has written so far; renamed to out/bundle at the end
    out/.bundle.varco-old      with --overwrite, the former bundle, between two renames

A lock dies with its process, so whoever gets it may remove what lies beside it: each run first does so for every lock
in its output folder, and a killed export leaves nothing for longer than until the next one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from varco_export.writing.disk import disk_errors, sync
from varco_export.writing.lock import try_lock
from varco_runtime.bundle.schema import MANIFEST
from varco_runtime.errors import ExportError

_LOCK, _PARTIAL, _OLD = ".varco-lock", ".varco-partial", ".varco-old"


@contextlib.contextmanager
def whole_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary sibling of `target` to fill; rename it to `target` at the end, remove it on an error.

    Args:
        target: The folder to make.
        overwrite: Whether a bundle, or an empty folder, in its place is replaced.

    Raises:
        ExportError: `target` exists and `overwrite` is not set, it is something else than a bundle or an empty folder,
            another run is writing it, or the disk refuses.
    """
    target = Path(os.path.abspath(target))
    if not target.name:
        raise ExportError(f"{target} is the root of the file system, expected a folder to make. Name one below it.")
    if not overwrite:
        _check_target(target, overwrite)
    with disk_errors(target), _parents_of(target), _lock_of(target):
        # Behind the lock, since without it another run may stand between its two renames.
        _check_target(target, overwrite)
        with _partial_of(target) as partial:
            yield partial
            _put_in_place(partial, target, overwrite)


def _check_target(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise ExportError(f"{target} exists already. Choose another output folder, remove it, or add --overwrite.")
    with disk_errors(target):
        is_folder = target.is_dir() and not target.is_symlink()
        if not is_folder or not ((target / MANIFEST).is_file() or not any(target.iterdir())):
            raise ExportError(
                f"{target} is no bundle, and --overwrite replaces nothing else. Remove it yourself, or choose another "
                "output folder."
            )


@contextlib.contextmanager
def _parents_of(target: Path) -> Iterator[None]:
    """Make the folders above `target`; remove those that were made on an error."""
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


@contextlib.contextmanager
def _lock_of(target: Path) -> Iterator[None]:
    """Hold the lock of `target`, after removing what killed runs have left in its folder."""
    for leftover in target.parent.glob(f".*{_LOCK}"):
        with contextlib.suppress(OSError):
            _reclaim(leftover)
    path = _sibling(target, _LOCK)
    descriptor = _try_lock(path)
    if descriptor is None:
        raise ExportError(
            f"{target} is being written by another export. Wait until it ends, or choose another output folder."
        )
    try:
        yield
    finally:
        _unlock(path, descriptor)


def _reclaim(lock: Path) -> None:
    descriptor = _try_lock(lock)
    if descriptor is None:
        return
    try:
        target = lock.with_name(lock.name[1 : -len(_LOCK)])
        old = _sibling(target, _OLD)
        if old.exists() and not os.path.lexists(target):  # killed between the two renames
            os.replace(old, target)
        for suffix in (_PARTIAL, _OLD):
            shutil.rmtree(_sibling(target, suffix), ignore_errors=True)
    finally:
        _unlock(lock, descriptor)


def _try_lock(path: Path) -> int | None:
    """Return the descriptor of a lock that is ours now, or None where another process holds it."""
    while True:
        descriptor = try_lock(path)
        if descriptor is None or _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # its last holder has removed it meanwhile


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _unlock(path: Path, descriptor: int) -> None:
    """Remove the lock while it is held, so that nobody else can hold a removed one unknowingly."""
    with contextlib.suppress(OSError):
        os.unlink(path)
    os.close(descriptor)


@contextlib.contextmanager
def _partial_of(target: Path) -> Iterator[Path]:
    partial = _sibling(target, _PARTIAL)
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _put_in_place(partial: Path, target: Path, overwrite: bool) -> None:
    _sync_folder(partial)
    _check_target(target, overwrite)  # it may have appeared meanwhile
    if not os.path.lexists(target):
        os.replace(partial, target)
    else:
        old = _sibling(target, _OLD)
        os.replace(target, old)
        try:
            os.replace(partial, target)
        except BaseException:
            os.replace(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Bring names to the disk where the file system can; the files themselves are there already."""
    with contextlib.suppress(OSError):
        sync(folder)


def _sibling(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}{suffix}")
