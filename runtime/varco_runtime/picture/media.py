"""Pictures and videos of a conversation, and how each of them is tiled.

What LLaVA-OneVision was trained on decides the tiling (LLaVA-NeXT `train.py`; transformers for pictures that are nested
by conversation): one picture of a whole conversation becomes a base tile and a grid, each of several becomes one padded
tile, and the frames of a video become one squashed tile each. A video beside one picture leaves that its grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from varco_runtime.errors import UsageError
from varco_runtime.picture.loading import Picture

TILINGS = ("auto", "grid", "one")
"""What may be asked for: as trained, a grid for each picture, or one padded tile for each, even for one alone."""

Tiling: TypeAlias = Literal["grid", "one", "frames", "frames and more"]
"""`frames and more` are frames of a video that goes on behind them, so that no newline follows."""
Key: TypeAlias = tuple[str, Tiling]
"""The digest and the tiling of a medium: equal keys have equal image tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """The chosen frames of a video, each squashed to one tile; equal clips have equal digests.

    Args:
        tiles: The frames, uint8 `[F, S, S, 3]`, at least one.
        frames: The number of each in the video, from 0.
        times_s: When each of them is shown, in seconds; None where the video does not say.
        width: The video's width in pixels.
        height: Its height in pixels.
        digest: The sha256 (hex) of the tiles.
    """

    tiles: npt.NDArray[np.uint8] = field(repr=False)
    frames: tuple[int, ...]
    times_s: tuple[float, ...] | None
    width: int
    height: int
    digest: str

    def part(self, first: int, last: int) -> Clip:
        """Return the frames `first` .. `last - 1` as a clip; all of them as it is."""
        if (first, last) == (0, len(self.tiles)):
            return self
        return replace(
            self,
            tiles=self.tiles[first:last],
            frames=self.frames[first:last],
            times_s=None if self.times_s is None else self.times_s[first:last],
            digest=f"{self.digest}[{first}:{last}]",
        )


@dataclass(frozen=True, slots=True)
class Medium:
    """A picture or a video, or a part of one, and how it is tiled.

    Args:
        source: What it shows.
        tiling: How it becomes tiles.
        given: The picture as it was given, where `source` is that scaled up; else None.
    """

    source: Picture | Clip
    tiling: Tiling
    given: Picture | None = None

    @property
    def asked(self) -> Picture | Clip:
        """Return what was asked about, before any scaling."""
        return self.given or self.source

    @property
    def key(self) -> Key:
        """Return its digest and its tiling, under which image tokens and cached prefixes are kept."""
        return self.source.digest, self.tiling


def tilings(sources: Sequence[Picture | Clip], tiling: str) -> tuple[Medium, ...]:
    """Return all media of a conversation with the tiling of each.

    Args:
        sources: The media of the whole conversation, the oldest first.
        tiling: One of `TILINGS`.

    Raises:
        UsageError: The tiling is none of them.
    """
    if tiling not in TILINGS:
        raise UsageError(f"tiling={tiling!r} is unknown. Expected one of: {', '.join(TILINGS)}.")
    num_pictures = sum(isinstance(source, Picture) for source in sources)
    is_grid = tiling == "grid" or (tiling == "auto" and num_pictures == 1)
    of_picture: Tiling = "grid" if is_grid else "one"
    return tuple(Medium(source, "frames" if isinstance(source, Clip) else of_picture) for source in sources)


def parts(medium: Medium, max_frames: int) -> Iterator[Medium]:
    """Yield a medium in parts that a device takes at a time: a picture whole, a video in runs of frames."""
    clip = medium.source
    if not isinstance(clip, Clip):
        yield medium
        return
    num_frames = len(clip.tiles)
    for first in range(0, num_frames, max_frames):
        last = min(first + max_frames, num_frames)
        yield Medium(clip.part(first, last), medium.tiling if last == num_frames else "frames and more")
