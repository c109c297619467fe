"""What all kinds of video offer: how many frames there are, when each is shown, and the pictures of some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from varco_runtime.errors import VideoError

Frame: TypeAlias = "Image.Image | npt.NDArray[np.uint8]"
"""A frame: an image of mode "RGB", or an array uint8 [H, W, 3]."""


class FramesDifferError(VideoError):
    """A frame did not come where its packet said, and the reader has counted its frames anew: choose again."""


class Reader(Protocol):
    """A video that is open."""

    @property
    def num_frames(self) -> int:
        """How many frames it has, at least 1."""

    @property
    def times_s(self) -> Sequence[float] | None:
        """When each is shown, in seconds after the first one, rising; None where the video does not say."""

    def pictures(self, numbers: Sequence[int]) -> Iterator[Frame]:
        """Yield the frames of these numbers, which rise: upright, RGB, each until the next one.

        Raises:
            FramesDifferError: One does not come; `num_frames` and `times_s` are other ones from now on.
        """
