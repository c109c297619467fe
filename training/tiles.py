"""A picture as LLaVA-OneVision cuts it: squashed base tile, grid tiles, and the packing of their features into tokens.

Fast equivalent of transformers' `LlavaOnevisionImageProcessorPil` and `pack_image_features` for this model's settings
(`tests/training/test_training.py` holds them equal). A token is a weighted sum of at most four projected patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

TILE_PX = 114
GRIDS = ((1, 1), (1, 2), (2, 1), (2, 2))  # (rows, columns)
PATCH_PX = 14
SIDE = TILE_PX // PATCH_PX  # 8 patches a side; the last 2 px are dropped by the convolution's stride
PATCHES = SIDE * SIDE
MAX_TILES = 3  # of `anyres_max_3`

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a picture of one size becomes tiles and tokens; points are normalised to the picture."""

    grid: tuple[int, int]
    resized: tuple[int, int]  # width, height inside the canvas
    offset: tuple[int, int]  # left, top padding
    indices: Ints  # [N, 4] rows of [tiles * 64 patches, newline]
    weights: Floats  # [N, 4]
    patch_points: Floats  # [tiles, 64, 2] centres
    patch_reach: Floats  # [tiles, 2] size of half a patch
    token_points: Floats  # [N, 2] centres; newlines far outside
    token_reach: Floats  # [N, 2]

    @property
    def num_tiles(self) -> int:
        return 1 + self.grid[0] * self.grid[1]


def best_grid(width: int, height: int) -> tuple[int, int]:
    """Return rows and columns of the grid that wastes least (`select_best_resolution`)."""
    best, best_fit, least_waste = (1, 1), 0, math.inf
    for rows, columns in GRIDS:
        h, w = rows * TILE_PX, columns * TILE_PX
        scale = min(w / width, h / height)
        fit = min(int(width * scale) * int(height * scale), width * height)
        waste = h * w - fit
        if fit > best_fit or (fit == best_fit and waste < least_waste):
            best, best_fit, least_waste = (rows, columns), fit, waste
    return best


@lru_cache(maxsize=4096)
def plan(width: int, height: int) -> Plan:
    """Return the plan for pictures of one size."""
    rows, columns = best_grid(width, height)
    canvas_w, canvas_h = columns * TILE_PX, rows * TILE_PX
    scale_w, scale_h = canvas_w / width, canvas_h / height
    if scale_w < scale_h:
        new_w, new_h = canvas_w, min(math.ceil(height * scale_w), canvas_h)
    else:
        new_w, new_h = min(math.ceil(width * scale_h), canvas_w), canvas_h
    left, top = (canvas_w - new_w) // 2, (canvas_h - new_h) // 2

    centres = (np.arange(SIDE) + 0.5) * PATCH_PX
    base = np.stack(np.meshgrid(centres, centres), -1).reshape(1, PATCHES, 2) / TILE_PX
    corners = np.array([(c * TILE_PX, r * TILE_PX) for r in range(rows) for c in range(columns)], np.float64)
    grid = (base * TILE_PX + corners[:, None] - (left, top)) / (new_w, new_h)
    points = np.concatenate([base, grid]).astype(np.float32)
    reach = np.array(
        [(PATCH_PX / 2 / TILE_PX,) * 2] + [(PATCH_PX / 2 / new_w, PATCH_PX / 2 / new_h)] * len(corners), np.float32
    )

    indices, weights = _pack(width, height, rows, columns)
    flat = np.concatenate([points.reshape(-1, 2), [(-9.0, -9.0)]]).astype(np.float32)
    flat_reach = np.concatenate([np.repeat(reach, PATCHES, 0), [(0.0, 0.0)]]).astype(np.float32)
    token_points = (flat[indices] * weights[..., None]).sum(1)
    return Plan(
        (rows, columns),
        (new_w, new_h),
        (left, top),
        indices,
        weights,
        points,
        reach,
        token_points,
        flat_reach[indices[:, 0]],
    )


def _pack(width: int, height: int, rows: int, columns: int) -> tuple[Ints, Floats]:
    """Return which patches make each token: 64 of the base, then the grid's rows, each ended by a newline."""
    full_h, full_w = rows * SIDE, columns * SIDE
    y0 = x0 = 0
    if width / height > full_w / full_h:
        y0 = (full_h - int(round(height * (full_w / width), 7))) // 2
    else:
        x0 = (full_w - int(round(width * (full_h / height), 7))) // 2
    kept_h, kept_w = full_h - 2 * y0, full_w - 2 * x0
    ratio = math.sqrt(kept_h * kept_w / (MAX_TILES * PATCHES))
    out_h, out_w = (int(kept_h // ratio), int(kept_w // ratio)) if ratio > 1.1 else (kept_h, kept_w)
    top, bottom, fy = _taps(kept_h, out_h)
    left, right, fx = _taps(kept_w, out_w)

    def row(y: Ints, x: Ints) -> Ints:
        y, x = y[:, None] + y0, x[None, :] + x0
        tile = (y // SIDE) * columns + x // SIDE
        return (1 + tile) * PATCHES + (y % SIDE) * SIDE + x % SIDE

    gather = np.stack([row(top, left), row(top, right), row(bottom, left), row(bottom, right)], -1)  # [h, w, 4]
    wy, wx = fy[:, None], fx[None, :]
    weight = np.stack([(1 - wy) * (1 - wx), (1 - wy) * wx, wy * (1 - wx), wy * wx], -1)
    newline = np.full((out_h, 1, 4), (1 + rows * columns) * PATCHES)
    gather = np.concatenate([gather, newline], 1).reshape(-1, 4)
    weight = np.concatenate([weight, np.broadcast_to([1.0, 0, 0, 0], (out_h, 1, 4))], 1).reshape(-1, 4)
    base = np.arange(PATCHES)[:, None].repeat(4, 1)
    alone = np.broadcast_to([1.0, 0, 0, 0], (PATCHES, 4))
    return np.concatenate([base, gather]).astype(np.int64), np.concatenate([alone, weight]).astype(np.float32)


def _taps(size: int, out: int) -> tuple[Ints, Ints, Floats]:
    """Return the two source rows and the second one's weight for a bilinear resize (align_corners False)."""
    source = np.maximum((np.arange(out) + 0.5) * (size / out) - 0.5, 0)
    first = source.astype(np.int64)
    return first, np.minimum(first + 1, size - 1), (source - first).astype(np.float32)


def cut(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the tiles of a picture, base first, [tiles, 114, 114, 3] uint8."""
    how = plan(*image.size)
    rows, columns = how.grid
    base = image.resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC)
    fitted = image.resize(how.resized, Image.Resampling.BICUBIC)
    canvas = np.zeros((rows * TILE_PX, columns * TILE_PX, 3), np.uint8)
    (left, top), (width, height) = how.offset, how.resized
    canvas[top : top + height, left : left + width] = np.asarray(fitted)
    tiles = canvas.reshape(rows, TILE_PX, columns, TILE_PX, 3).swapaxes(1, 2).reshape(-1, TILE_PX, TILE_PX, 3)
    return np.concatenate([np.asarray(base)[None], tiles])
