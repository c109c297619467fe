"""A video file: its frames counted in a first pass over packets, the chosen ones decoded in a second.

The second pass decodes only the groups of packets that hold chosen frames. It does not ask the container to seek, which
some cannot do to a frame: packets that are not needed are read and dropped, which costs next to nothing.

A packet's time may still not be its frame's, in a file that was cut badly or whose container has no times. Where a
chosen frame does not come, every frame is decoded once to be counted, and the choice is made among those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from varco_runtime.errors import VideoError
from varco_runtime.video.budget import Budget
from varco_runtime.video.container import check_size, opened
from varco_runtime.video.packets import PacketIndex, grouped_packets, index_packets
from varco_runtime.video.reader import FramesDifferError


class FileReader:
    """The frames of a video file.

    Args:
        file: An open binary file that can seek.
        budget: What reading it may cost.

    Raises:
        VideoError: It is no video file, is truncated, has no video, or costs too much to read.
        MissingExtraError: PyAV is not installed.
    """

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        self._file = file
        self._budget = budget
        self._index: PacketIndex | None = None
        self._times_s: list[float] | None = []
        with opened(file, budget) as (container, stream):
            index = index_packets(container, stream, budget)
            self._time_base: Fraction = stream.time_base
            self._rate = float(stream.average_rate or 0)  # frames per second
            is_sound = index.is_sound(stream.codec_context.has_b_frames)
        self.num_frames = len(index.times)
        if self.num_frames and is_sound:
            self._index = index
            self._times_s = self._seconds(index.times.tolist())
        else:
            self.recount()

    @property
    def times_s(self) -> Sequence[float] | None:
        return self._times_s

    def recount(self) -> None:
        """Decode every frame, drop it, and count: what packets say of times is not what frames say."""
        self._index = None
        times = [frame.pts for frame in self._all_frames()]
        if not times:
            raise VideoError(
                f"no frame of {self._budget.name} can be decoded. Expected at least one; the file is damaged, copy or"
                " convert it again."
            )
        self.num_frames = len(times)
        self._times_s = self._times_of(times)

    def _times_of(self, times: Sequence[int | None]) -> list[float] | None:
        """Return the times of decoded frames; by the stream's rate, where they say none that rise."""
        known = [time for time in times if time is not None]
        if len(known) == len(times) and all(earlier < later for earlier, later in pairwise(known)):
            return self._seconds(known)
        return [number / self._rate for number in range(len(times))] if self._rate else None

    def _seconds(self, times: Sequence[int]) -> list[float]:
        return [(time - times[0]) * self._time_base.numerator / self._time_base.denominator for time in times]

    def pictures(self, numbers: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the frames of these numbers, which rise: upright, RGB, each until the next one.

        Raises:
            FramesDifferError: One does not come at its packet's time; all were counted by decoding.
        """
        missing = len(numbers)
        for frame in self._frames_of_numbers(numbers):
            yield upright(frame)
            missing -= 1
            if not missing:
                return
        self.recount()
        raise FramesDifferError(f"{self._budget.name} has other frames each time it is read. Expected a file at rest.")

    def _frames_of_numbers(self, numbers: Sequence[int]) -> Iterator[Any]:
        """Yield the frames of these numbers; ends early where one does not come."""
        if self._index is None:
            wanted = frozenset(numbers)
            yield from (frame for number, frame in enumerate(self._all_frames()) if number in wanted)
            return
        times = (int(self._index.times[number]) for number in numbers)
        time = next(times, None)
        for frame in self._decoded(self._index.groups_for(numbers)):
            if frame.pts == time:
                yield frame
                time = next(times, None)

    def _all_frames(self) -> Iterator[Any]:
        return self._decoded(None)

    def _decoded(self, groups: frozenset[int] | None) -> Iterator[Any]:
        """Yield the frames of some groups of packets, or of all."""
        with opened(self._file, self._budget) as (container, stream):
            decoder, is_fed = stream.codec_context, False
            for group, packet in grouped_packets(container, stream, self._budget):
                if group >= 0 and (groups is None or group in groups):
                    is_fed = True
                    yield from self._frames_of(decoder, packet)
                elif is_fed:
                    is_fed = False
                    yield from self._frames_of(decoder, None)
                    decoder.flush_buffers()
            if is_fed:
                yield from self._frames_of(decoder, None)

    def _frames_of(self, decoder: Any, packet: Any) -> Iterator[Any]:
        try:
            frames = decoder.decode(packet)
        except Exception:
            check_size(decoder, self._budget.name)  # the size may change in mid-stream
            raise
        for frame in frames:
            self._budget.check_time()
            yield frame


def upright(frame: Any) -> npt.NDArray[np.uint8]:
    """Return a decoded frame in RGB, turned as the phone that took it was held: a view, uint8 [H, W, 3]."""
    rgb = frame.reformat(format="rgb24")
    rows = np.frombuffer(rgb.planes[0], np.uint8).reshape(rgb.height, rgb.planes[0].line_size)  # padded at their ends
    pixels = rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)
    return np.rot90(pixels, round(frame.rotation / 90))
