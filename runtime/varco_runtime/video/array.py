"""A video that is in memory already: an array of frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from varco_runtime.errors import VideoError
from varco_runtime.picture import MAX_PIXELS, MAX_SIDE_PX


@dataclass(frozen=True, slots=True)
class ArrayReader:
    """Frames as one array, uint8 [F, H, W, 3] in RGB order.

    Raises:
        VideoError: The array has another shape or type, no frame, or frames that are too large.
    """

    array: npt.NDArray[Any]

    def __post_init__(self) -> None:
        array = self.array
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or 0 in array.shape:
            raise VideoError(
                f"the video is an array {array.dtype} {list(array.shape)}. Expected uint8 [frames, height, width, 3] in"
                " RGB order, 0..255, with at least one frame of one pixel."
            )
        height, width = array.shape[1:3]
        if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE_PX:
            raise VideoError(
                f"the video has frames of {width}x{height} pixels. Expected at most {MAX_PIXELS:,} pixels in all and"
                f" {MAX_SIDE_PX:,} along a side; scale them down first."
            )

    @property
    def num_frames(self) -> int:
        return len(self.array)

    @property
    def times_s(self) -> None:
        return None

    def pictures(self, numbers: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
        for number in numbers:
            yield self.array[number]
