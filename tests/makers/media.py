"""Videos that are drawn, clips of them, and media as the tests of several pictures hand them over."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from varco_runtime.picture.media import Clip


def drawn_frame(number: int, width: int = 320, height: int = 240) -> np.ndarray:
    """A frame `[H, W, 3]` of the drawn video: R = 2x + 7t, G = 3y + 11t, B = x + y + 13t, each modulo 256."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (2 * x + 7 * number, 3 * y + 11 * number, x + y + 13 * number)
    return np.stack([channel % 256 for channel in channels], 2).astype(np.uint8)


def drawn_frames(num_frames: int, width: int = 320, height: int = 240) -> np.ndarray:
    """The drawn video, uint8 `[F, H, W, 3]`."""
    return np.stack([drawn_frame(number, width, height) for number in range(num_frames)])


def drawn_clip(num_frames: int, tile_px: int, seed: int = 0) -> Clip:
    """As many frames of random pixels' worth of structure as a clip of tiles."""
    frames = [Image.fromarray(drawn_frame(17 * seed + number, 64, 48)) for number in range(num_frames)]
    tiles = np.stack([np.asarray(frame.resize((tile_px, tile_px), Image.Resampling.BICUBIC)) for frame in frames])
    digest = hashlib.sha256(tiles.tobytes()).hexdigest()
    return Clip(tiles, tuple(range(num_frames)), tuple(map(float, range(num_frames))), 64, 48, digest)
