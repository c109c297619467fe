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

from varco_runtime.video.reader import Frame

_BAND_BYTES = 2**18
_TALL = 100  # above it Pillow scales along columns first


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


def squash(frame: Frame, edge: int) -> npt.NDArray[np.uint8]:
    """Return a frame as one tile, whatever its proportions.

    Args:
        frame: The frame: an array uint8 [H, W, 3], or an image of mode "RGB".
        edge: Width and height of the tile in pixels.

    Returns:
        The tile, uint8 [edge, edge, 3].
    """
    if isinstance(frame, Image.Image):
        return np.asarray(frame.resize((edge, edge), Image.Resampling.BICUBIC))
    height, width = frame.shape[:2]
    if height > _TALL * width:
        return squash(Image.fromarray(np.ascontiguousarray(frame)), edge)
    # Pillow scales along rows first, then along columns: done in bands, the first half gives the same bits and no whole
    # copy of the frame, of which Pillow would make one of 4 bytes per pixel.
    narrow = np.empty((height, edge, 3), np.uint8)
    num_rows = max(1, _BAND_BYTES // (3 * width))
    for top in range(0, height, num_rows):
        band = Image.fromarray(np.ascontiguousarray(frame[top : top + num_rows]))
        narrow[top : top + num_rows] = np.asarray(band.resize((edge, band.height), Image.Resampling.BICUBIC))
    return np.asarray(Image.fromarray(narrow).resize((edge, edge), Image.Resampling.BICUBIC))


def size_of(frame: Frame) -> tuple[int, int]:
    """Return a frame's width and height in pixels."""
    return frame.size if isinstance(frame, Image.Image) else (frame.shape[1], frame.shape[0])


def digest_of(tiles: npt.NDArray[np.uint8]) -> str:
    """Return the sha256 (hex) of the shape and bytes of tiles."""
    digest = hashlib.sha256(f"video {list(tiles.shape)}\n".encode())
    digest.update(np.ascontiguousarray(tiles).data)
    return digest.hexdigest()
