"""A video that lies in a folder: a picture file for each frame, in the order of their names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from varco_runtime.errors import ImageError, VideoError
from varco_runtime.picture import load_picture
from varco_runtime.video.budget import Budget

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2"))
"""Names of frames; whatever else lies in the folder is left out. Hidden files are, too."""


class FolderReader:
    """The pictures of a folder; `frame_2.png` stands in front of `frame_10.png`.

    Args:
        folder: The folder.
        budget: What reading it may cost.

    Raises:
        VideoError: It cannot be read, or holds no pictures.
    """

    def __init__(self, folder: Path, budget: Budget) -> None:
        self._budget = budget
        self._files: list[Path] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_frame(entry.name) and entry.is_file():
                        self._files.append(Path(entry.path))
                        budget.check_packets(len(self._files))
        except OSError as error:
            raise VideoError(f"{budget.name} cannot be read: {error.strerror}. Expected a folder of frames.") from None
        if not self._files:
            raise VideoError(
                f"{budget.name} holds no pictures. Expected a video file, or a folder of frames in"
                f" {', '.join(sorted(suffix[1:] for suffix in SUFFIXES))}."
            )
        self._files.sort(key=_natural_order)

    @property
    def num_frames(self) -> int:
        return len(self._files)

    @property
    def times_s(self) -> None:
        return None

    def pictures(self, numbers: Sequence[int]) -> Iterator[Image.Image]:
        for number in numbers:
            self._budget.check_time()
            try:
                yield load_picture(self._files[number]).image
            except ImageError as error:
                raise VideoError(f"frame {number} of {self._budget.name}: {error}") from None


def _is_frame(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _natural_order(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Return a key that sorts digits by their value, and equal values by name."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    return [(int(part), "") if part[0] in "0123456789" else (-1, part) for part in parts], path.name
