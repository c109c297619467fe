"""The user's cache folder: what is kept between runs to start faster, and would be made again without it.

    varco-edge/
      verified.json          which large files have been hashed (`verified.py`)
      prepacked/KEY/         weights as onnxruntime's kernels want them (`prepacked.py`)
      kernels/HASH.cache     what TensorRT for RTX compiled (`kernel_cache.py`)
      timings-*.cache        what kernels took in earlier engine builds (`varco_export.engines.timing_cache`)
      limit                  the most bytes of it all, where `varco cache --limit` was given

An entry decides what is computed: packed weights are a network, and a remembered hash lets a file pass unread. So only
what this user alone can have written is used. A folder or file that belongs to another user, or that others may write,
counts as not there, and nothing is written beside it. Neither does an entry that is no plain file or is too large; none
of them is an error, and none is waited for.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from varco_runtime.system.files import whole_file

MAX_CACHE_BYTES = 8 << 30
"""The most bytes of all entries, unless the user chose another limit; the ones longest unused go first."""
MAKING = ".making-"
"""Begins the name of a folder whose entry is not complete."""

UNUSABLE = ".unusable"
"""Ends the name of an empty file that stands for an entry which is not to be made again."""

_LIMIT = "limit"
_MAX_LIMIT_BYTES = 64
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """Return `$VARCO_EDGE_CACHE`, else `varco-edge` in `$XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        RuntimeError: There is no home.
    """
    chosen = os.environ.get("VARCO_EDGE_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "varco-edge"


# --- whose it is ------------------------------------------------------------------------------------------------------


def fault_of(info: os.stat_result) -> str | None:
    """Return why a file or folder cannot be trusted, in words that follow its name; None for one of this user alone."""
    user = getattr(os, "geteuid", None)  # Windows has none, and other permissions
    if user is None:
        return None
    if info.st_uid != user():
        return f"belongs to another user (id {info.st_uid})"
    if info.st_mode & _OTHERS_MAY_WRITE:
        return f"may be written by other users (mode {stat.S_IMODE(info.st_mode):o})"
    return None


def is_private(folder: Path) -> bool:
    """Return whether `folder` and the folders up to the cache folder are this user's alone. False if one is missing."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        root = cache_folder()
        for part in (folder, *folder.parents):
            info = os.stat(part) if part == root else os.lstat(part)  # the cache itself may be a link to a larger disk
            if not stat.S_ISDIR(info.st_mode) or fault_of(info):
                return False
            if part == root:
                return True
    return False


def cache_fault() -> str | None:
    """Return why the cache folder cannot be used, and what to do, in one sentence each; None where it can."""
    try:
        root = cache_folder()
        info = os.stat(root)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:
        return f"The cache folder cannot be found: {error}. Set VARCO_EDGE_CACHE to a folder of your own."
    if not stat.S_ISDIR(info.st_mode):
        return f"The cache folder {root} is a file. Remove it, or set VARCO_EDGE_CACHE to a folder of your own."
    fault = fault_of(info)
    if fault is None:
        return None
    is_shared = bool(info.st_mode & stat.S_ISVTX)  # as /tmp is, for good reason
    advice = f"Run chmod go-w {root}, or set" if "written" in fault and not is_shared else "Set"
    return f"The cache folder {root} {fault}. {advice} VARCO_EDGE_CACHE to a folder of your own."


def make_private(folder: Path) -> bool:
    """Make `folder` within the cache folder where it is missing. Return whether it can be used.

    Raises:
        OSError: The disk refuses.
        RuntimeError: There is no home for the cache folder.
    """
    root = cache_folder()
    root.parent.mkdir(parents=True, exist_ok=True)
    for part in (root, *reversed([part for part in (folder, *folder.parents) if root in part.parents])):
        part.mkdir(mode=0o700, exist_ok=True)
        if not is_private(part):
            return False
    return True


# --- entries ----------------------------------------------------------------------------------------------------------


def read_entry(path: Path, max_bytes: int) -> bytes | None:
    """Return what a file of the cache folder holds; None where there is no such file that can be trusted.

    That is a plain file of this user alone, in folders of this user alone, and not longer than `max_bytes`.
    """
    if not is_private(path.parent):
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode) or fault_of(info) or info.st_size > max_bytes:
                return None
            content = file.read(max_bytes + 1)  # it may have grown
    except OSError:
        return None
    return content if len(content) <= max_bytes else None


def write_entry(path: Path, content: bytes | memoryview) -> bool:
    """Write a file of the cache folder, whole or not at all. Return whether it was written."""
    try:
        if not make_private(path.parent):
            return False
        with whole_file(path, prefix="partial.", is_private=True) as file:
            file.write(content)
    except (OSError, RuntimeError):
        return False
    return True


# --- its size ---------------------------------------------------------------------------------------------------------


def max_cache_bytes() -> int:
    """Return the most bytes of all entries: the user's limit, or `MAX_CACHE_BYTES`."""
    with contextlib.suppress(RuntimeError, ValueError):
        content = read_entry(cache_folder() / _LIMIT, _MAX_LIMIT_BYTES)
        if content is not None:
            return max(0, int(content))
    return MAX_CACHE_BYTES


def set_max_cache_bytes(max_bytes: int) -> bool:
    """Set the user's limit. Return whether it could be kept."""
    return write_entry(cache_folder() / _LIMIT, f"{max_bytes}\n".encode())


def entries_of(folder: Path) -> list[Path]:
    """Return the complete entries below the cache folder `folder` that count against the limit."""
    entries = []
    for kind in ("prepacked", "kernels"):
        with contextlib.suppress(OSError):
            entries += [path for path in (folder / kind).iterdir() if path.suffix != UNUSABLE and not _is_begun(path)]
    return entries


def num_bytes(path: Path) -> int:
    """Return the bytes of a file, or of the files in a folder; 0 for what is gone. Links are not followed."""
    try:
        info = os.lstat(path)
        if not stat.S_ISDIR(info.st_mode):
            return info.st_size
        return sum(num_bytes(part) for part in path.iterdir())
    except OSError:
        return 0


def drop_oldest(entries: Iterable[Path], max_bytes: int) -> int:
    """Remove entries, the longest unused first, until the rest take at most `max_bytes`. Return the bytes removed."""
    sizes = {path: num_bytes(path) for path in entries}
    before = sum(sizes.values())
    for path in sorted(sizes, key=_last_used):
        if sum(sizes.values()) <= max_bytes:
            break
        if remove(path):
            del sizes[path]
    return before - sum(sizes.values())


def remove(path: Path) -> bool:
    """Remove a file, a link or a folder with all it holds. Return whether it is gone."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return not os.path.lexists(path)


def clear(folder: Path) -> int:
    """Remove all that this program keeps in `folder`, and the folder itself if that is all. Return the bytes removed.

    The folder may be any that the user chose, so that only known names are touched.
    """
    before = 0
    for pattern in ("verified.json", "partial.*", "verified.*", "timings-*.cache", "timings-*.partial", _LIMIT):
        for path in folder.glob(pattern):
            size = num_bytes(path)
            before += size if remove(path) else 0
    for kind in ("prepacked", "kernels"):
        size = num_bytes(folder / kind)
        before += size if remove(folder / kind) else 0
    with contextlib.suppress(OSError):
        folder.rmdir()
    return before


def _is_begun(path: Path) -> bool:
    return path.name.startswith((MAKING, "partial."))


def _last_used(path: Path) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0
