"""Which frames of a video are looked at: evenly spread, or one each so many seconds.

As LLaVA-NeXT's `train.py` samples them: one frame a second, and `linspace(0, n - 1, F)` rounded down over all frames
where that gives more than F.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from varco_runtime.errors import VideoError

_CLOSE_S = 0.001  # Matroska rounds times to milliseconds


def choose_frames(num_frames: int, times_s: Sequence[float] | None, frames: int, fps: float | None) -> tuple[int, ...]:
    """Return the numbers of the frames to look at, rising, none twice.

    Args:
        num_frames: How many frames the video has, at least 1.
        times_s: When each is shown, in seconds, rising; None where the video does not say.
        frames: The most frames to look at.
        fps: Take the frame shown each 1/`fps` seconds, and `frames` evenly spread ones if those are more; None takes
            evenly spread ones at once.

    Raises:
        VideoError: `fps` is given for a video that says no times.
    """
    if fps is not None:
        if times_s is None:
            raise VideoError(
                f"fps {fps:g} was asked of frames that have no times. Expected a video file or an animation; leave fps"
                " out, and frames says how many are taken."
            )
        numbers = _each_interval(np.asarray(times_s, np.float64), fps)
        if len(numbers) <= frames:
            return numbers
    return tuple(np.linspace(0, num_frames - 1, min(frames, num_frames), dtype=int).tolist())


def _each_interval(times_s: npt.NDArray[np.float64], fps: float) -> tuple[int, ...]:
    """Return the frames shown at 0, 1/fps, 2/fps, ... seconds after the first one."""
    steps, close = (times_s - times_s[0]) * fps, _CLOSE_S * fps
    first = np.ceil(steps - close)  # of these moments, the first at which each frame is shown
    following = np.append(first[1:], np.floor(steps[-1] + close) + 1)
    return tuple(np.flatnonzero(first < following).tolist())
