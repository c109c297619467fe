"""Videos drawn by a formula, and files of them."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Frames = npt.NDArray[np.uint8]


def drawn_video(num_frames: int = 100, width: int = 320, height: int = 240) -> Frames:
    """Return R = 2x+7t, G = 3y+11t, B = x+y+13t, each mod 256: uint8 [F, H, W, 3]."""
    t, y, x = np.ogrid[:num_frames, :height, :width]
    channels = np.broadcast_arrays(2 * x + 7 * t, 3 * y + 11 * t, x + y + 13 * t)
    return (np.stack(channels, axis=-1) % 256).astype(np.uint8)


def video_file(
    frames: Frames | Sequence[Frames],
    container: str = "matroska",
    codec: str = "ffv1",
    pixels: str = "bgr0",
    group: int = 10,
    rate: int = 25,
    container_options: dict[str, str] | None = None,
    **options: str,
) -> bytes:
    """Return frames as a video file; FFV1 in `bgr0` keeps every bit of them.

    Args:
        frames: uint8 [F, H, W, 3], or a list of uint8 [H, W, 3].
        container: FFmpeg's name of the container.
        codec: FFmpeg's name of the encoder.
        pixels: FFmpeg's name of the pixel format.
        group: The most frames from one key frame to the next.
        rate: Frames per second.
        container_options: Options of the container.
        options: Options of the encoder, with `_` for `-`.
    """
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=container, options=container_options or {}) as out:
        stream: Any = out.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = group
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {name.replace("_", "-"): value for name, value in options.items()}
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return file.getvalue()


def sound_file(container: str = "mp4", codec: str = "aac") -> bytes:
    """Return a second of silence."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 8000
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()


def turned(mp4: bytes, degrees: int) -> bytes:
    """Return an mp4 that says it is to be shown turned clockwise by 90, 180 or 270 degrees, as phones write it.

    The matrix of `tkhd`: ISO 14496-12 section 8.3.2.
    """
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    at = mp4.index(b"tkhd") + 4 + 40
    return mp4[:at] + matrix + mp4[at + len(matrix) :]


def animation(frames: Frames, file_format: str, duration_ms: int = 40) -> bytes:
    """Return frames as an animation of Pillow's, GIF or WebP; WebP keeps every bit of them."""
    images = [Image.fromarray(frame) for frame in frames]
    options: dict[str, Any] = {"lossless": True, "quality": 0, "method": 0} if file_format == "WEBP" else {}
    file = io.BytesIO()
    images[0].save(file, file_format, save_all=True, append_images=images[1:], duration=duration_ms, loop=0, **options)
    return file.getvalue()


def frame_folder(frames: Frames, folder: Path) -> Path:
    """Write frames as frame_0.png, frame_1.png, ... into a new folder."""
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{number}.png")
    return folder
