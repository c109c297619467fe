"""The tiling presets of VARCO-VISION-2.0's own evaluation, in the place of what a checkpoint says."""

from __future__ import annotations

from dataclasses import replace

from varco_runtime.bundle.settings import ImageSettings

MAX_GRID_TILES = {4: 3, 9: 6, 16: 8}
"""By the N of `anyres_max_N`: the longest side of a grid, in tiles."""


def preset_tiling(image: ImageSettings, max_grid_tiles: int) -> ImageSettings:
    """Return settings with a tiling preset: all grids up to its longest side, rows first as checkpoints list them; for
    4 tiles only those of at most 4 in all."""
    sides = range(1, MAX_GRID_TILES[max_grid_tiles] + 1)
    grids = [(rows, cols) for rows in sides for cols in sides if max_grid_tiles != 4 or rows * cols <= 4]
    pinpoints = tuple((rows * image.tile_px, cols * image.tile_px) for rows, cols in grids)
    return replace(image, grid_pinpoints=pinpoints, max_grid_tiles=max_grid_tiles)
