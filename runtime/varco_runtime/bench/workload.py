"""The question a benchmark asks: a picture, several or a video, and a prompt."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from varco_runtime.bundle.manifest import Manifest
from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.conversation import Turn, media_of
from varco_runtime.dtypes import Array
from varco_runtime.picture.loading import Picture, load_picture
from varco_runtime.picture.media import Clip, Medium
from varco_runtime.picture.packing import PackingPlan, media_plan
from varco_runtime.picture.tiles import media_tiles, normalize, num_tiles

PROMPT = "Describe this image."


@dataclass(frozen=True, slots=True)
class Workload:
    """A question about pictures or a video. Holds no tiles of pictures: they are memory.

    Args:
        media: What is asked about, as the model is shown it.
        prompt: The question.
        settings: What the bundle says about pictures.
    """

    media: tuple[Medium, ...]
    prompt: str
    settings: ImageSettings

    @classmethod
    def of(
        cls, picture: Picture, images: int, frames: int, prompt: str, manifest: Manifest, long_side: int | None = None
    ) -> Workload:
        """Return the question about copies of a picture, each of which differs from the others in a pixel.

        Args:
            picture: The picture.
            images: So many pictures, if `frames` is 0.
            frames: A video of so many frames instead; 0 for none.
            prompt: The question.
            manifest: What the bundle says about itself.
            long_side: As `media_of` takes it.
        """
        settings = manifest.image
        sources: list[Picture | Clip]
        if not frames:
            sources = [picture, *(load_picture(_copy(picture, index)) for index in range(1, images))]
        else:
            sources = [_clip(picture, frames, settings)]
        media = media_of([Turn("user", (*sources, prompt))], manifest, untrained=True, long_side=long_side)
        return cls(media, prompt, settings)

    @property
    def asked(self) -> list[Picture | Clip]:
        """Return what is asked about, as `Varco.ask` takes it."""
        return [medium.source for medium in self.media]

    def tiles(self) -> Array:
        """Return the tiles `[T, 3, S, S]` uint8, made as `Varco.ask` makes them."""
        return media_tiles(self.media, self.settings)

    def pixel_values(self) -> Array:
        """Return the vision tower's inputs `[T, 3, S, S]` fp32."""
        return normalize(self.tiles(), self.settings)

    def plan(self) -> PackingPlan:
        """Return how the image tokens are packed."""
        return media_plan(self.media, self.settings)

    @property
    def num_tiles(self) -> int:
        """Return the number of tiles, T."""
        return sum(num_tiles(medium, self.settings) for medium in self.media)


def _copy(picture: Picture, index: int) -> Image.Image:
    """Return a copy with another pixel, so that nothing is recognized as known."""
    copy = picture.image.copy()
    copy.putpixel((0, 0), (index % 256, index // 256, 0))
    return copy


def _clip(picture: Picture, frames: int, settings: ImageSettings) -> Clip:
    """Return a video of copies of a picture."""
    size = settings.tile_px, settings.tile_px
    shown = (_copy(picture, index).resize(size, Image.Resampling.BICUBIC) for index in range(frames))
    tiles = np.stack([np.asarray(frame) for frame in shown])
    digest = hashlib.sha256(tiles.tobytes()).hexdigest()
    return Clip(tiles, tuple(range(frames)), None, picture.width, picture.height, digest)
