"""Videos drawn by a formula, and files of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def drawn_video(num_frames: int = 100, width: int = 320, height: int = 240) -> npt.NDArray[np.uint8]:
    """Return R = 2x+7t, G = 3y+11t, B = x+y+13t, each mod 256: uint8 [F, H, W, 3]."""
    t, y, x = np.ogrid[:num_frames, :height, :width]
    channels = np.broadcast_arrays(2 * x + 7 * t, 3 * y + 11 * t, x + y + 13 * t)
    return (np.stack(channels, axis=-1) % 256).astype(np.uint8)
