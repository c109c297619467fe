"""Pictures and videos become tiles: the pixels' side of LLaVA-OneVision, from sizes alone.

    media -> media_tiles -> normalize -> `pixel_values` of the vision tower

One picture becomes a base tile (the whole picture squashed into one square) and a grid of tiles (the picture scaled
into the best of the checkpoint's resolutions, centred on black): "anyres". One of several becomes one tile, padded to
a square with gray. Each frame of a video becomes one tile, squashed.

Formulas: transformers 5.17, `image_processing_pil_llava_onevision.py`. Sizes are (height, width) throughout, as there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.errors import BundleError, ImageError
from varco_runtime.picture.bounds import MAX_PIXELS
from varco_runtime.picture.loading import Picture
from varco_runtime.picture.media import Clip, Medium

LEVELS = 256
PADDING = (127, 127, 127)
"""What pads one of several pictures to a square: LLaVA-NeXT's `int(255 * mean)` for a mean of 0.5."""


@dataclass(frozen=True, slots=True)
class TilePlan:
    """Where the pixels of a picture go: a grid of tiles, with the picture centered on it.

    Args:
        grid_rows: Rows of tiles.
        grid_cols: Columns of tiles.
        resized_hw: The picture's (height, width) on the grid, in pixels.
        offset_tl: Its (top, left) there, in pixels.
    """

    grid_rows: int
    grid_cols: int
    resized_hw: tuple[int, int]
    offset_tl: tuple[int, int]

    @property
    def num_tiles(self) -> int:
        """Return the number of tiles: the base tile and the grid's."""
        return 1 + self.grid_rows * self.grid_cols


def select_best_resolution(size_hw: tuple[int, int], pinpoints: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the resolution (height, width) that keeps most pixels, then wastes least; the first of equals.

    Source: transformers `image_processing_utils.select_best_resolution`, in its order of floating-point operations.
    """
    height, width = size_hw
    best, best_effective, best_waste = None, 0, math.inf
    for pin_height, pin_width in pinpoints:
        scale = min(pin_width / width, pin_height / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        waste = pin_height * pin_width - effective
        if effective > best_effective or (effective == best_effective and waste < best_waste):
            best, best_effective, best_waste = (pin_height, pin_width), effective, waste
    if best is None:
        raise BundleError("image settings have no grid_pinpoints. Expected at least one (height, width); export again.")
    return best


def tile_plan(size_hw: tuple[int, int], settings: ImageSettings) -> TilePlan:
    """Return grid, scaled size and position for a picture.

    Args:
        size_hw: Height and width in pixels, at least 1x1.
        settings: What the bundle says about pictures.

    Raises:
        ImageError: The picture has no pixels.
        BundleError: The settings are beyond what the formulas here cover.
    """
    _check_settings(settings)
    height, width = size_hw
    if height < 1 or width < 1:
        raise ImageError(f"a picture of {width}x{height} pixels has no tiles. Expected at least 1x1.")
    best_height, best_width = select_best_resolution(size_hw, settings.grid_pinpoints)
    scale_w, scale_h = best_width / width, best_height / height
    if scale_w < scale_h:
        resized_hw = min(math.ceil(height * scale_w), best_height), best_width
    else:
        resized_hw = best_height, min(math.ceil(width * scale_h), best_width)
    return TilePlan(
        grid_rows=best_height // settings.tile_px,
        grid_cols=best_width // settings.tile_px,
        resized_hw=resized_hw,
        offset_tl=((best_height - resized_hw[0]) // 2, (best_width - resized_hw[1]) // 2),
    )


def tile(picture: Picture, settings: ImageSettings) -> npt.NDArray[np.uint8]:
    """Return the tiles of a picture, the base tile first, then the grid's by rows: uint8 [T, 3, tile_px, tile_px]."""
    plan, side = tile_plan(picture.size_hw, settings), settings.tile_px
    tiles = np.empty((plan.num_tiles, 3, side, side), np.uint8)
    tiles[0] = _resized(picture, (side, side)).transpose(2, 0, 1)

    canvas = np.zeros((plan.grid_rows * side, plan.grid_cols * side, 3), np.uint8)
    (top, left), (height, width) = plan.offset_tl, plan.resized_hw
    canvas[top : top + height, left : left + width] = _resized(picture, plan.resized_hw)
    grid = canvas.reshape(plan.grid_rows, side, plan.grid_cols, side, 3)
    grid = grid.transpose(0, 2, 4, 1, 3)  # [rows, cols, 3, side, side]
    tiles[1:].reshape(grid.shape)[...] = grid
    return tiles


def num_tiles(medium: Medium, settings: ImageSettings) -> int:
    """Return the number of a medium's tiles.

    Args:
        medium: A picture or a video.
        settings: What the bundle says about pictures.
    """
    if isinstance(medium.source, Clip):
        return len(medium.source.tiles)
    return 1 if medium.tiling == "one" else tile_plan(medium.source.size_hw, settings).num_tiles


def media_tiles(media: Sequence[Medium], settings: ImageSettings) -> npt.NDArray[np.uint8]:
    """Return the tiles of media, one medium behind the other: uint8 [T, 3, tile_px, tile_px].

    Args:
        media: At least one picture or video.
        settings: What the bundle says about pictures.
    """
    parts = [_tiles(medium, settings) for medium in media]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _tiles(medium: Medium, settings: ImageSettings) -> npt.NDArray[np.uint8]:
    if isinstance(medium.source, Clip):
        return np.ascontiguousarray(medium.source.tiles.transpose(0, 3, 1, 2))
    if medium.tiling == "one":
        _check_settings(settings)
        return padded_tile(medium.source, settings.tile_px).transpose(2, 0, 1)[None].copy()
    return tile(medium.source, settings)


def padded_tile(picture: Picture, side_px: int) -> npt.NDArray[np.uint8]:
    """Return a picture padded to a square with gray and scaled to one tile, uint8 [side_px, side_px, 3].

    Source: LLaVA-NeXT `mm_utils.expand2square`, then its processor's bicubic resize; transformers pads alike.

    Args:
        picture: The picture.
        side_px: The side of the tile.
    """
    side = max(picture.size_hw)
    if side * side > MAX_PIXELS:
        return _thin_padded_tile(picture, side_px)
    canvas = Image.new("RGB", (side, side), PADDING)
    canvas.paste(picture.image, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(canvas.resize((side_px, side_px), Image.Resampling.BICUBIC))


def _thin_padded_tile(picture: Picture, side_px: int) -> npt.NDArray[np.uint8]:
    """Return `padded_tile` of a picture whose square would take gigabytes: only what the kernel sees is padded.

    The long side is scaled first, the short side then on a canvas that reaches a kernel's width into the padding.
    """
    wide = picture.width >= picture.height
    long, short = max(picture.size_hw), min(picture.size_hw)
    scaled = picture.image.resize((side_px, short) if wide else (short, side_px), Image.Resampling.BICUBIC)
    scale = long / side_px
    start = (long - short) // 2
    # The tile's rows (or columns) that a picture's pixel reaches: a bicubic kernel is two of them wide to each side.
    first, last = max(0, int(start / scale) - 3), min(side_px, int((start + short) / scale) + 4)
    low, high = max(0, int((first - 3) * scale)), min(long, int((last + 3) * scale) + 1)
    size = (side_px, high - low) if wide else (high - low, side_px)
    canvas = Image.new("RGB", size, PADDING)
    canvas.paste(scaled, (0, start - low) if wide else (start - low, 0))
    span = first * scale - low, last * scale - low
    box = (0.0, span[0], float(side_px), span[1]) if wide else (span[0], 0.0, span[1], float(side_px))
    shown = canvas.resize((side_px, last - first) if wide else (last - first, side_px), Image.Resampling.BICUBIC, box)
    tile_ = np.full((side_px, side_px, 3), PADDING, np.uint8)
    tile_[(slice(first, last),) if wide else (slice(None), slice(first, last))] = np.asarray(shown)
    return tile_


def _resized(picture: Picture, size_hw: tuple[int, int]) -> npt.NDArray[np.uint8]:
    return np.asarray(picture.image.resize((size_hw[1], size_hw[0]), Image.Resampling.BICUBIC))


def normalize(tiles: npt.NDArray[np.uint8], settings: ImageSettings) -> npt.NDArray[np.float32]:
    """Return `(tile * rescale_factor - mean) / std` per channel: float32 `pixel_values` [T, 3, tile_px, tile_px]."""
    tables = level_tables(settings)
    pixel_values = np.empty(tiles.shape, np.float32)
    for levels, values in zip(tiles, pixel_values, strict=True):
        for channel in range(3):
            # "clip" never happens with 256 entries; "raise" would build the result in a buffer first
            np.take(tables[channel], levels[channel], out=values[channel], mode="clip")
    return pixel_values


def level_tables(settings: ImageSettings) -> npt.NDArray[np.float32]:
    """Return what becomes of each of a pixel's 256 levels, for each channel: float32 [3, 256].

    Computed as transformers' PIL backend computes a pixel (the product in float64, everything after it in float32), so
    a look-up is bit-identical.
    """
    if 0.0 in settings.std:
        raise BundleError(f"image settings have std {settings.std}. Expected values other than 0; export again.")
    levels = (np.arange(LEVELS, dtype=np.float64) * settings.rescale_factor).astype(np.float32)
    mean, std = np.array(settings.mean, np.float32), np.array(settings.std, np.float32)
    tables: npt.NDArray[np.float32] = (levels[None] - mean[:, None]) / std[:, None]
    return tables


def _check_settings(settings: ImageSettings) -> None:
    """Refuse what the formulas of tiles and packing do not cover."""
    tile_px, patch_px = settings.tile_px, settings.patch_px
    if not 0 < patch_px <= tile_px:
        raise BundleError(
            f"image settings have patch_px {patch_px} and tile_px {tile_px}. Expected 0 < patch_px <= tile_px; export"
            " again."
        )
    for pin in settings.grid_pinpoints:
        if any(side < tile_px or side % tile_px for side in pin):
            raise BundleError(
                f"image settings have the grid_pinpoint {list(pin)}. Expected multiples of tile_px {tile_px}; export"
                " again."
            )
    if settings.max_grid_tiles is not None and settings.max_grid_tiles < 1:
        raise BundleError(
            f"image settings have max_grid_tiles {settings.max_grid_tiles}. Expected at least 1, or null; export again."
        )
