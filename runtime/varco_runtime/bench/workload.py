"""The question a benchmark asks: a picture and a prompt."""

from __future__ import annotations

from dataclasses import dataclass

from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.dtypes import Array
from varco_runtime.picture.loading import Picture
from varco_runtime.picture.packing import PackingPlan, num_image_tokens, packing_plan
from varco_runtime.picture.tiles import normalize, tile, tile_plan

PROMPT = "Describe this image."


@dataclass(frozen=True, slots=True)
class Workload:
    """A question about a picture. Holds no tiles: they are memory.

    Args:
        picture: The picture, as the model is shown it.
        prompt: The question.
        settings: What the bundle says about pictures.
    """

    picture: Picture
    prompt: str
    settings: ImageSettings

    def tiles(self) -> Array:
        """Return the tiles `[T, 3, S, S]` uint8, made as `Varco.ask` makes them."""
        return tile(self.picture, self.settings)

    def pixel_values(self) -> Array:
        """Return the vision tower's inputs `[T, 3, S, S]` fp32."""
        return normalize(self.tiles(), self.settings)

    def plan(self) -> PackingPlan:
        """Return how the picture's tokens are packed."""
        return packing_plan(self.picture.size_hw, self.settings)

    @property
    def num_image_tokens(self) -> int:
        """Return the number of the picture's tokens, N."""
        return num_image_tokens(self.picture.size_hw, self.settings)

    @property
    def num_tiles(self) -> int:
        """Return the number of the picture's tiles, T."""
        return tile_plan(self.picture.size_hw, self.settings).num_tiles
