"""What a question sees of a video: some frames, each squashed into one tile.

Squashed as the model's video processor does: no padding, no grid, bicubic. Each frame is scaled when it is decoded and
dropped, so that a video costs the memory of its tiles.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image


@dataclass(frozen=True, slots=True)
class VideoTiles:
    """The frames of a video that a question sees; equal frames have equal digests.

    Args:
        tiles: The frames, upright RGB, uint8 [F, S, S, 3], read-only.
        frames: The number of each in the video, from 0.
        times_s: When each is shown, in seconds after the first frame of the video; None where the video does not say.
        size: Width and height in pixels of the first of them.
        num_frames: How many frames the video has.
        digest: The sha256 (hex) of the tiles' shape and bytes, the key under which features and prefixes are kept.
    """

    tiles: npt.NDArray[np.uint8] = field(compare=False, repr=False)
    frames: tuple[int, ...]
    times_s: tuple[float, ...] | None
    size: tuple[int, int]
    num_frames: int
    digest: str


def squash(image: Image.Image, edge: int) -> npt.NDArray[np.uint8]:
    """Return a frame as one tile, whatever its proportions.

    Args:
        image: The frame, mode "RGB".
        edge: Width and height of the tile in pixels.

    Returns:
        The tile, uint8 [edge, edge, 3].
    """
    return np.asarray(image.resize((edge, edge), Image.Resampling.BICUBIC))


def digest_of(tiles: npt.NDArray[np.uint8]) -> str:
    """Return the sha256 (hex) of the shape and bytes of tiles."""
    digest = hashlib.sha256(f"video {list(tiles.shape)}\n".encode())
    digest.update(np.ascontiguousarray(tiles).data)
    return digest.hexdigest()
