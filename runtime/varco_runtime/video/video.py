"""A video from anywhere, of which a question sees some frames."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from varco_runtime.errors import ContextError, VideoError
from varco_runtime.video.array import ArrayReader
from varco_runtime.video.budget import Budget
from varco_runtime.video.choice import choose_frames
from varco_runtime.video.reader import FramesDifferError, Reader
from varco_runtime.video.tiles import VideoTiles, digest_of, size_of, squash

VideoSource: TypeAlias = "str | os.PathLike[Any] | bytes | bytearray | memoryview | BinaryIO | npt.NDArray[np.uint8]"

MAX_FRAMES = 4096
"""The most frames that may be asked for: 1.8 GB of tiles, and ninety times what the longest context holds."""

MAX_FPS = 1_000_000
"""More than any video has; a number without a bound would overflow."""


class Video:
    """A video that a question is asked about. Nothing is read before the question.

    Args:
        source: The path of a video file, the path of a folder of frames, an open binary file that can seek, the bytes
            of a file, or an array uint8 [F, H, W, 3] in RGB order.
        frames: The most frames that are looked at, spread evenly; a shorter video is seen whole.
        fps: Look at one frame each 1/`fps` seconds instead, as long as those are not more than `frames`.
        decode_limit_s: How long finding and decoding the frames may take, in seconds.

    Raises:
        VideoError: `frames`, `fps`, `decode_limit_s` or the array cannot be.
    """

    __slots__ = ("_seen", "decode_limit_s", "fps", "frames", "source")

    def __init__(
        self, source: VideoSource, frames: int = 32, fps: float | None = None, *, decode_limit_s: float = 120.0
    ) -> None:
        _check_numbers(frames, fps, decode_limit_s)
        if isinstance(source, np.ndarray):
            ArrayReader(source)
        self.source = source
        self.frames = frames
        self.fps = fps
        self.decode_limit_s = decode_limit_s
        self._seen: tuple[int, VideoTiles] | None = None

    def __repr__(self) -> str:
        source = self.source
        shown = f"{source!r}" if isinstance(source, (str, os.PathLike)) else f"<{type(source).__name__}>"
        return f"Video({shown}, frames={self.frames}, fps={self.fps})"

    def tiles(self, edge: int, max_frames: int = MAX_FRAMES) -> VideoTiles:
        """Return the frames that are looked at; decoded once, and kept for the next question.

        Args:
            edge: Width and height of a tile in pixels.
            max_frames: How many frames the context holds. More are refused before they are decoded: they are memory.

        Raises:
            ContextError: More frames were asked for than the context holds.
            VideoError: The video cannot be read, or reading it takes too much.
            MissingExtraError: It is a video file, and PyAV is not installed.
        """
        if self._seen is None or self._seen[0] != edge:
            with self._opened() as reader:
                self._seen = edge, self._read(reader, edge, max_frames)
        return self._seen[1]

    def _read(self, reader: Reader, edge: int, max_frames: int) -> VideoTiles:
        try:
            return _tiles(reader, self._chosen(reader, max_frames), edge)
        except FramesDifferError:
            return _tiles(reader, self._chosen(reader, max_frames), edge)

    def _chosen(self, reader: Reader, max_frames: int) -> tuple[int, ...]:
        numbers = choose_frames(reader.num_frames, reader.times_s, self.frames, self.fps)
        if len(numbers) > max_frames:
            raise ContextError(
                f"The video is looked at in {len(numbers)} frames, the context holds {max_frames} at most. Ask with at "
                f"most {max_frames} frames, less what the question needs."
            )
        return numbers

    @contextmanager
    def _opened(self) -> Iterator[Reader]:
        from varco_runtime.video.opening import opened_file, opened_path  # the readers, for those who show a video

        source = self.source
        if isinstance(source, np.ndarray):
            yield ArrayReader(source)
        elif isinstance(source, (str, os.PathLike)):
            path = os.fsdecode(source)
            with opened_path(path, Budget(repr(path), self.decode_limit_s)) as reader:
                yield reader
        elif isinstance(source, (bytes, bytearray, memoryview)):
            yield opened_file(io.BytesIO(source), Budget("the video", self.decode_limit_s))
        elif hasattr(source, "read") and hasattr(source, "seek"):
            yield opened_file(source, Budget("the video", self.decode_limit_s))
        else:
            raise VideoError(
                f"a video cannot be made of a {type(source).__name__}. Expected the path of a video file or of a folder"
                " of frames, an open binary file, bytes, or a uint8 array [frames, height, width, 3]."
            )


def _tiles(reader: Reader, numbers: tuple[int, ...], edge: int) -> VideoTiles:
    tiles = np.empty((len(numbers), edge, edge, 3), np.uint8)
    size = (0, 0)
    for place, frame in enumerate(reader.pictures(numbers)):
        size = size if place else size_of(frame)
        tiles[place] = squash(frame, edge)
        del frame  # before the next one is decoded
    tiles.setflags(write=False)
    times_s = None if reader.times_s is None else tuple(reader.times_s[number] for number in numbers)
    return VideoTiles(tiles, numbers, times_s, size, reader.num_frames, digest_of(tiles))


def _check_numbers(frames: int, fps: float | None, decode_limit_s: float) -> None:
    if isinstance(frames, bool) or not isinstance(frames, int) or not 1 <= frames <= MAX_FRAMES:
        raise VideoError(f"a video was asked for {frames!r} frames. Expected a whole number from 1 to {MAX_FRAMES:,}.")
    if fps is not None and not (_is_positive(fps) and fps <= MAX_FPS):
        raise VideoError(
            f"a video was asked for {fps!r} frames per second. Expected a number above 0, at most {MAX_FPS:,}, or None."
        )
    if not _is_positive(decode_limit_s):
        raise VideoError(f"a video was given {decode_limit_s!r} seconds for decoding. Expected a number above 0.")


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
