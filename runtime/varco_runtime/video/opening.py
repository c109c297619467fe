"""Which reader a file or a path gets, by its first bytes and never by its name."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from varco_runtime.errors import VideoError, one_line
from varco_runtime.picture import MAX_FILE_BYTES
from varco_runtime.picture.bounds import FORMATS as PICTURE_FORMATS
from varco_runtime.video import animation
from varco_runtime.video.animation import AnimationReader
from varco_runtime.video.budget import Budget
from varco_runtime.video.folder import FolderReader
from varco_runtime.video.reader import Reader

_HEAD_BYTES = 64


@contextmanager
def opened_path(path: str, budget: Budget) -> Iterator[Reader]:
    """Open a video file or a folder of frames.

    Args:
        path: Where it is.
        budget: What reading it may cost.

    Raises:
        VideoError: It cannot be read, or is no video.
        MissingExtraError: It is a video file, and PyAV is not installed.
    """
    if _is_folder(path, budget.name):
        yield FolderReader(Path(path), budget)
        return
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed by the `with` below; this `try` is for opening alone)
    except OSError as error:
        raise _unopened(budget.name, error) from None
    with file:
        yield opened_file(file, budget)


def _is_folder(path: str, name: str) -> bool:
    """Return whether a path is a folder, and refuse what is neither that nor a file: opening a pipe would wait."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise _unopened(name, error) from None
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise VideoError(f"{name} is no regular file. Expected a video file or a folder of frames.")
    return stat.S_ISDIR(mode)


def _unopened(name: str, error: Exception) -> VideoError:
    reason = getattr(error, "strerror", None) or str(error)
    return VideoError(f"{name} cannot be opened: {reason}. Expected the path of a readable video.")


def opened_file(file: BinaryIO, budget: Budget) -> Reader:
    """Return the reader for an open file, which is read from its beginning and stays open.

    Args:
        file: An open binary file that can seek.
        budget: What reading it may cost.

    Raises:
        VideoError: It cannot be read, or is no video.
        MissingExtraError: It is a video file, and PyAV is not installed.
    """
    head = _head(file, budget.name)
    format_ = next((one for signature, one in PICTURE_FORMATS if re.match(signature, head, re.DOTALL)), None)
    if format_ is None:
        from varco_runtime.video.decoding import FileReader

        return FileReader(file, budget)
    if format_.key not in animation.FORMATS:
        raise VideoError(
            f"{budget.name} is a picture ({format_.name}) and no video. Give it as a picture, or give a video file or a"
            " folder of frames."
        )
    file.seek(0)
    data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise VideoError(
            f"{budget.name} has more than {MAX_FILE_BYTES:,} bytes, the most that is read of an animation. Convert it"
            " to a video in MP4."
        )
    return AnimationReader(data, budget)


def _head(file: BinaryIO, name: str) -> bytes:
    try:
        file.seek(0)
        head = file.read(_HEAD_BYTES)
    except (OSError, ValueError, io.UnsupportedOperation) as error:  # ValueError: it is closed
        raise VideoError(
            f"{name} cannot be read from its beginning: {one_line(error, 120)}. Expected a binary file that can seek;"
            " give its bytes instead."
        ) from None
    if not isinstance(head, bytes):
        raise VideoError(f"{name} is a text stream. Expected bytes; open it in binary mode.")
    return head
