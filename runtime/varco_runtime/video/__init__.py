"""Any video -> some of its frames, upright RGB, each squashed into one tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varco_runtime.lazy import hand_on

if TYPE_CHECKING:
    from varco_runtime.video.tiles import VideoTiles
    from varco_runtime.video.video import Video, VideoSource

__all__ = ["Video", "VideoSource", "VideoTiles"]

__getattr__ = hand_on(__name__, {"tiles": ("VideoTiles",), "video": ("Video", "VideoSource")})
