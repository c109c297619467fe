"""Projected patches become image tokens: the tokens' side of LLaVA-OneVision, from sizes alone.

    tiles -> (vision tower, projector) -> pack -> image tokens

One plan covers all media of a list, one behind the other (`media_plan`). A picture of one tile keeps all its patches
and ends with a newline. A video's frames are pooled, 27x27 patches to 14x14, and one newline follows the last of them.
Below is "anyres", for one picture on a base tile and a grid.

The vision tower makes P x P patches of each tile. Of the grid's patches those that show padding are cut off, a large
rest is shrunk bilinearly, and every row ends with the newline vector. All of this is linear, so each image token is a
weighted sum of at most four projected patch rows, or the newline: a `PackingPlan` says which.

Formulas: transformers 5.17, `modeling_llava_onevision.py` (`pack_image_features`, `unpad_image`). Sizes are (height,
width) throughout, as in transformers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.errors import ImageError
from varco_runtime.picture.media import Clip, Medium
from varco_runtime.picture.tiles import TilePlan, tile_plan

SHRUNK_SIDE = 1.1
"""A grid is shrunk once it exceeds `max_grid_tiles` by more than this factor along each side,"""
SHRUNK_TOKENS = 1.21
"""and so can be this much larger without being shrunk."""
_PACK_ROWS = 64  # image tokens blended at a time: 1.3 MB of float32 at 5,120 wide, which stays in the cache


@dataclass(frozen=True, slots=True, eq=False)
class PackingPlan:
    """How the image tokens of pictures and videos are made of their projected patch rows.

    Token n is `sum(weights[n, k] * rows[indices[n, k]] for k in range(4))`, where `rows` are the projected patches
    (tile * patches_per_tile + patch) with the newline vector behind them, at `newline_row`. A token that is one plain
    row has that row's index four times and the weights 1, 0, 0, 0.

    Args:
        indices: The rows of each token, int32 [N, 4].
        weights: Their weights, float32 [N, 4].
        grid_hw: Rows and columns of the grid's tokens, newlines not counted; those of the last medium of several.
        newline_row: The index of the newline vector, behind all projected patches.
    """

    indices: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    grid_hw: tuple[int, int]
    newline_row: int

    @property
    def num_tokens(self) -> int:
        """Return the number of image tokens, N."""
        return len(self.indices)

    @property
    def is_gather(self) -> bool:
        """Return whether every token is one plain row, so that no weight matters."""
        return bool((self.weights[:, 0] == 1).all())


@dataclass(frozen=True, slots=True)
class _Window:
    """The grid's patches that show the picture (`top`, `left`, `height`, `width`), and the size they are shrunk to."""

    top: int
    left: int
    height: int
    width: int
    shrunk_hw: tuple[int, int]


def num_image_tokens(size_hw: tuple[int, int], settings: ImageSettings) -> int:
    """Return the number of a picture's image tokens: the base tile's, the grid's, and a newline per row of the grid.

    Args:
        size_hw: Height and width of the picture in pixels.
        settings: What the bundle says about pictures.

    Raises:
        ImageError: The picture has no pixels, or is too thin for any patch.
        BundleError: The settings are beyond what the formulas here cover.
    """
    rows, cols = _window(tile_plan(size_hw, settings), size_hw, settings).shrunk_hw
    return settings.patches_per_tile + rows * cols + rows


def packing_plan(size_hw: tuple[int, int], settings: ImageSettings) -> PackingPlan:
    """Return which projected patch rows make each image token of a picture, from its size alone.

    Args:
        size_hw: Height and width of the picture in pixels.
        settings: What the bundle says about pictures.

    Raises:
        ImageError: The picture has no pixels, or is too thin for any patch.
        BundleError: The settings are beyond what the formulas here cover.
    """
    plan = tile_plan(size_hw, settings)
    window = _window(plan, size_hw, settings)
    side, per_tile = settings.patches_per_side, settings.patches_per_tile
    num_rows, num_cols = window.shrunk_hw
    newline_row = plan.num_tiles * per_tile

    # The row of the grid's patch (y, x) is row_of_y[y] + row_of_x[x].
    y = np.arange(window.top, window.top + window.height, dtype=np.int32)
    x = np.arange(window.left, window.left + window.width, dtype=np.int32)
    row_of_y = (1 + y // side * plan.grid_cols) * per_tile + y % side * side
    row_of_x = x // side * per_tile + x % side

    y_pair, y_weights = _bilinear(window.height, num_rows)  # [rows, 2]
    x_pair, x_weights = _bilinear(window.width, num_cols)  # [cols, 2]
    indices = np.full((num_rows, num_cols + 1, 2, 2), newline_row, np.int32)
    weights = np.zeros((num_rows, num_cols + 1, 2, 2), np.float32)
    indices[:, :-1] = row_of_y[y_pair][:, None, :, None] + row_of_x[x_pair][None, :, None, :]
    weights[:, :-1] = y_weights[:, None, :, None] * x_weights[None, :, None, :]
    weights[:, -1, 0, 0] = 1

    base = np.arange(per_tile, dtype=np.int32)
    one_hot = np.array([1, 0, 0, 0], np.float32)
    return PackingPlan(
        indices=np.concatenate([np.repeat(base[:, None], 4, axis=1), indices.reshape(-1, 4)]),
        weights=np.concatenate([np.tile(one_hot, (per_tile, 1)), weights.reshape(-1, 4)]),
        grid_hw=window.shrunk_hw,
        newline_row=newline_row,
    )


def num_medium_tokens(medium: Medium, settings: ImageSettings) -> int:
    """Return the number of a medium's image tokens, newlines included.

    Args:
        medium: A picture or a video, or a part of one.
        settings: What the bundle says about pictures.

    Raises:
        ImageError: The picture is too thin for any patch.
        BundleError: The settings are beyond what the formulas here cover.
    """
    source = medium.source
    if isinstance(source, Clip):
        return len(source.tiles) * pooled_side(settings) ** 2 + (medium.tiling == "frames")
    return settings.patches_per_tile + 1 if medium.tiling == "one" else num_image_tokens(source.size_hw, settings)


def media_plan(media: Sequence[Medium], settings: ImageSettings) -> PackingPlan:
    """Return which projected patch rows make each image token of media, one medium behind the other.

    Args:
        media: At least one picture or video, in the order of their tiles.
        settings: What the bundle says about pictures.

    Raises:
        ImageError: A picture is too thin for any patch.
        BundleError: The settings are beyond what the formulas here cover.
    """
    plans = [_plan(medium, settings) for medium in media]
    if len(plans) == 1:
        return plans[0]
    newline_row = sum(plan.newline_row for plan in plans)
    indices, first = [], 0
    for plan in plans:
        indices.append(
            np.where(plan.indices == plan.newline_row, np.int32(newline_row), plan.indices + np.int32(first))
        )
        first += plan.newline_row
    weights = np.concatenate([plan.weights for plan in plans])
    return PackingPlan(np.concatenate(indices), weights, plans[-1].grid_hw, newline_row)


def pooled_side(settings: ImageSettings) -> int:
    """Return how many tokens stand along a side of a video's frame: half of its patches, rounded up."""
    return -(-settings.patches_per_side // 2)


def _plan(medium: Medium, settings: ImageSettings) -> PackingPlan:
    if isinstance(medium.source, Clip):
        return _frames_plan(len(medium.source.tiles), medium.tiling == "frames", settings)
    return _one_tile_plan(settings) if medium.tiling == "one" else packing_plan(medium.source.size_hw, settings)


def _one_tile_plan(settings: ImageSettings) -> PackingPlan:
    """Return all patches of one tile in order, and a newline.

    Source: transformers 5.17 `pack_image_features`, the branch of features without a grid.
    """
    side, patches = settings.patches_per_side, settings.patches_per_tile
    indices = np.repeat(np.arange(patches + 1, dtype=np.int32)[:, None], 4, axis=1)
    weights = np.tile(np.array([1, 0, 0, 0], np.float32), (patches + 1, 1))
    return PackingPlan(indices, weights, (side, side), patches)


def _frames_plan(num_frames: int, ends: bool, settings: ImageSettings) -> PackingPlan:
    """Return frames pooled to half of their patches along each side, and a newline where the video ends.

    Source: transformers 5.17 `apply_pooling`; LLaVA-NeXT `get_2dPool` in its mode bilinear.
    """
    side, patches, pooled = settings.patches_per_side, settings.patches_per_tile, pooled_side(settings)
    pair, part = _bilinear(side, pooled)  # [pooled, 2], for rows and columns alike
    frame = (pair * side)[:, None, :, None] + pair[None, :, None, :]  # [pooled, pooled, 2, 2]
    weight = part[:, None, :, None] * part[None, :, None, :]
    firsts = np.arange(num_frames, dtype=np.int32) * patches
    indices = (firsts[:, None, None] + frame.reshape(1, -1, 4)).astype(np.int32).reshape(-1, 4)
    weights = np.tile(weight.reshape(-1, 4), (num_frames, 1))
    newline_row = num_frames * patches
    if ends:
        indices = np.concatenate([indices, np.full((1, 4), newline_row, np.int32)])
        weights = np.concatenate([weights, np.array([[1, 0, 0, 0]], np.float32)])
    return PackingPlan(indices, weights, (pooled, pooled), newline_row)


def pack(
    features: npt.NDArray[np.floating[Any]], newline: npt.NDArray[np.floating[Any]], plan: PackingPlan
) -> npt.NDArray[np.floating[Any]]:
    """Make image tokens of projected patches. Besides the result only one block of rows is allocated.

    Args:
        features: Projected patches, [T * P, D] or [T, P, D].
        newline: The newline vector [D].
        plan: Which rows make each token.

    Returns:
        The image tokens [N, D], in the dtype of `features`; sums are taken in float32.
    """
    features = features.reshape(-1, features.shape[-1])  # [T * P, D]
    assert len(features) == plan.newline_row, f"Bug: the plan is for {plan.newline_row} rows, got {len(features)}"
    tokens = np.empty((plan.num_tokens, features.shape[1]), features.dtype)
    plain = plan.weights[:, 0] == 1
    for start in range(0, plan.num_tokens, _PACK_ROWS):
        block = slice(start, start + _PACK_ROWS)
        indices, weights = plan.indices[block], plan.weights[block]
        if plain[block].all():
            # "clip" reads some row for a newline, which is overwritten below: so features need not be copied to add it
            np.take(features, indices[:, 0], axis=0, out=tokens[block], mode="clip")
        else:
            total = features.take(indices[:, 0], axis=0, mode="clip") * weights[:, :1]
            for k in (1, 2, 3):
                total += features.take(indices[:, k], axis=0, mode="clip") * weights[:, k : k + 1]
            tokens[block] = total
    tokens[plan.indices[:, 0] == plan.newline_row] = newline
    return tokens


def _window(plan: TilePlan, size_hw: tuple[int, int], settings: ImageSettings) -> _Window:
    """Return the patches left by un-padding, and the size that shrinking gives them.

    Source: `unpad_image` and `pack_image_features`, in their floating-point order.

    The window may have no rows (or no columns): a hair-thin picture on a grid with an even number of patches.
    """
    height, width = size_hw
    side = settings.patches_per_side
    rows, cols = plan.grid_rows * side, plan.grid_cols * side
    top = left = 0
    if width / height > cols / rows:
        top = (rows - int(round(height * (cols / width), 7))) // 2
        rows -= 2 * top
    else:
        left = (cols - int(round(width * (rows / height), 7))) // 2
        cols -= 2 * left
    shrunk_hw = rows, cols
    if settings.max_grid_tiles is not None:
        ratio = math.sqrt(rows * cols / (settings.max_grid_tiles * settings.patches_per_tile))
        if ratio > SHRUNK_SIDE:
            shrunk_hw = int(rows // ratio), int(cols // ratio)
            if 0 in shrunk_hw:
                raise ImageError(
                    f"a picture of {width}x{height} pixels is too thin: its {rows}x{cols} patches shrink to none."
                    " Expected a picture closer to a square; crop or pad it."
                )
    return _Window(top, left, rows, cols, shrunk_hw)


def _bilinear(size: int, out_size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the two source positions and weights of each output position along one axis, both [out_size, 2].

    Source: PyTorch `aten/src/ATen/native/UpSample.h`, bilinear with align_corners False and no antialiasing, in its
    float32 arithmetic. Its builds contract `scale * (x + 0.5) - 0.5` into one fused operation; float64 holds the
    product exactly, so rounding once at the end gives the same. Equal sizes give each position itself, weight 1.
    """
    if size == out_size:
        positions = np.repeat(np.arange(size)[:, None], 2, axis=1)
        return positions, np.tile(np.array([1, 0], np.float32), (size, 1))
    scale = np.float32(size) / np.float32(out_size)
    source = (np.float64(scale) * (np.arange(out_size) + 0.5) - 0.5).astype(np.float32)
    source = np.maximum(source, np.float32(0))
    first = np.minimum(source.astype(np.int64), size - 1)
    second = np.minimum(first + 1, size - 1)
    fraction = np.clip(source - first.astype(np.float32), np.float32(0), np.float32(1))
    return np.stack([first, second], axis=1), np.stack([np.float32(1) - fraction, fraction], axis=1)


def largest_picture(settings: ImageSettings) -> tuple[int, int]:
    """Return the most tiles and the most image tokens that any picture makes under `settings`."""
    side, patches = settings.patches_per_side, settings.patches_per_tile
    grids = [(height // settings.tile_px, width // settings.tile_px) for height, width in settings.grid_pinpoints]
    tiles = max(rows * columns for rows, columns in grids)
    grid_tokens = tiles * patches
    if settings.max_grid_tiles is not None:
        grid_tokens = min(grid_tokens, math.ceil(SHRUNK_TOKENS * settings.max_grid_tiles * patches))
    newlines = max(rows for rows, _ in grids) * side
    return 1 + tiles, patches + grid_tokens + newlines
