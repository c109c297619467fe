"""A video file opened by FFmpeg, through PyAV, so that it is data and no program.

To FFmpeg a path is a request: a playlist or a list of files named .mp4 reads other files of this machine, and a session
description opens sockets. So FFmpeg never gets a path, only an object that reads; no protocol is allowed, only formats
that hold their own frames are, and whatever it asks to open beside the file is refused. The size of a frame is bounded
by the codec's own option, which also holds where the size changes in mid-stream.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NoReturn

from varco_runtime.errors import VideoError, one_line
from varco_runtime.picture import MAX_PIXELS
from varco_runtime.system.libraries import needs_extra
from varco_runtime.system.processor import usable_cores
from varco_runtime.video.budget import Budget
from varco_runtime.video.completeness import missing_bytes

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,gif"
OPTIONS = {"protocol_whitelist": "", "format_whitelist": FORMATS, "max_pixels": str(MAX_PIXELS)}
_COVER = 0x400  # AV_DISPOSITION_ATTACHED_PIC
MAX_THREADS = 4
"""Each thread holds a frame."""

_EXPECTED = "Expected a video in MP4, MOV, MKV, WebM, AVI or MPEG-TS, or an animation in GIF or WebP"


class MeteredFile:
    """What FFmpeg sees of a file: its bytes and nothing else, as long as time is left.

    Args:
        file: An open binary file that can seek.
        budget: Checked at each read, for FFmpeg reads on where a stream says nothing new.
    """

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        self._file = file
        self._budget = budget

    def read(self, size: int) -> bytes:
        self._budget.check_time()
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def opened(file: BinaryIO, budget: Budget) -> Iterator[tuple[Any, Any]]:
    """Open a video file, and give its container and its video stream; close the container, not the file.

    Args:
        file: An open binary file that can seek.
        budget: What reading it may cost.

    Raises:
        VideoError: It is no video file, is truncated, or has no video stream, or one with frames that are too large.
        MissingExtraError: PyAV is not installed.
    """
    with needs_extra("Reading a video file", "video"):
        av = importlib.import_module("av")
    _check_complete(file, budget.name)
    file.seek(0)
    with _decoder_errors(av, budget.name), _open(av, MeteredFile(file, budget), budget) as container:
        stream = _video_stream(container, budget.name)
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        stream.codec_context.thread_count = min(usable_cores(), MAX_THREADS)
        stream.thread_type = "AUTO"
        yield container, stream


@contextmanager
def _open(av: Any, file: MeteredFile, budget: Budget) -> Iterator[Any]:
    try:
        container = av.open(file, mode="r", options=OPTIONS, io_open=_refuse_to_open, metadata_errors="replace")
    except av.error.FFmpegError as error:
        budget.check_time()  # FFmpeg may have taken a failed read for the end of the file
        raise VideoError(
            f"{budget.name} is not a video in a format that is read: {one_line(error.strerror, 120)}. {_EXPECTED}."
        ) from None
    with container:
        yield container


@contextmanager
def _decoder_errors(av: Any, name: str) -> Iterator[None]:
    """Turn whatever FFmpeg says while it reads or decodes into one line."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise VideoError(
            f"{name} cannot be decoded: {one_line(error.strerror, 120)}. Expected a complete video file; copy or"
            " convert it again."
        ) from None


def _refuse_to_open(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise VideoError("a video asked to open another file. Expected a video that holds its own frames.")


def _check_complete(file: BinaryIO, name: str) -> None:
    num_bytes = file.seek(0, io.SEEK_END)
    if num_bytes == 0:
        raise VideoError(f"{name} is empty (0 bytes). {_EXPECTED}; check how it was written or sent.")
    missing = missing_bytes(file, num_bytes)
    if missing:
        raise VideoError(
            f"{name} is truncated: it has {num_bytes:,} bytes and lacks {missing:,} at its end. Expected a complete"
            " video file; copy it again."
        )


def _video_stream(container: Any, name: str) -> Any:
    """Return the video stream that FFmpeg holds for the best one; the cover of a sound file is none."""
    streams = [one for one in container.streams.video if not one.disposition & _COVER]
    if not streams:
        raise VideoError(f"{name} has no video stream. {_EXPECTED}.")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise VideoError(f"{name} has frames in a format that FFmpeg cannot decode. Convert it to H.264 in MP4.")
    check_size(stream.codec_context, name)
    return stream


def check_size(codec_context: Any, name: str) -> None:
    """Refuse frames that are too large, by what a decoder knows of their size.

    Raises:
        VideoError: They have more than `MAX_PIXELS` pixels.
    """
    width, height = codec_context.width, codec_context.height
    if width * height > MAX_PIXELS:
        raise VideoError(
            f"{name} has frames of {width}x{height} pixels, too large to be decoded safely. Expected at most"
            f" {MAX_PIXELS:,} pixels; scale the video down first."
        )
