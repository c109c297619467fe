"""Tiles and the packing plan, by hand-checked figures and by properties; tests/reference compares with transformers."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.errors import BundleError, ImageError
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.packing import num_image_tokens, pack, packing_plan
from varco_runtime.picture.tiles import TilePlan, normalize, select_best_resolution, tile, tile_plan

PHOTOGRAPHS = Path(__file__).resolve().parents[4] / "shared" / "images"


def anyres(tile_px: int, patch_px: int, side: int, max_grid_tiles: int | None) -> ImageSettings:
    """Settings with every grid from 1x1 to side x side tiles, rows outer, as the checkpoints list them."""
    grids = range(1, side + 1)
    pinpoints = tuple((tile_px * rows, tile_px * cols) for rows in grids for cols in grids)
    return ImageSettings(tile_px, patch_px, pinpoints, max_grid_tiles, (0.5,) * 3, (0.5,) * 3, 0.00392156862745098)


CARD = anyres(384, 14, side=6, max_grid_tiles=9)  # VARCO-VISION-14B
SMALL = anyres(114, 14, side=2, max_grid_tiles=3)  # an even number of patches, and a remainder of 2 px
SIZES_HW = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
SETTINGS = st.sampled_from([CARD, SMALL, anyres(56, 14, side=3, max_grid_tiles=1), anyres(28, 14, 4, None)])


def noise(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- golden figures --------------------------------------------------------------------------------------------------

# width, height -> best (height, width), tiles, grid (rows, columns) of patches, tokens
GOLDEN = [
    ((640, 480), (768, 768), 5, (40, 54), 2929),
    ((480, 640), (768, 768), 5, (54, 40), 2943),
    ((1304, 732), (768, 1536), 9, (54, 96), 5967),
    ((1024, 899), (1152, 1152), 10, (71, 81), 6551),
    ((384, 384), (384, 384), 2, (27, 27), 1485),
    ((1, 1), (384, 384), 2, (27, 27), 1485),
    ((800, 600), (768, 1152), 7, (54, 73), 4725),
    ((336, 1008), (1152, 384), 4, (81, 27), 2997),
    ((729, 1), (384, 768), 3, (1, 54), 784),
    ((1920, 1080), (1152, 1920), 16, (60, 108), 7269),
    ((1080, 1920), (1920, 1152), 16, (108, 60), 7317),
    ((768, 1920), (1920, 768), 11, (135, 54), 8154),
    ((2304, 2304), (2304, 2304), 37, (81, 81), 7371),
    ((4000, 3000), (1920, 2304), 31, (70, 93), 7309),
    ((960, 1168), (1536, 1152), 13, (98, 81), 8765),
]


@pytest.mark.parametrize(
    ("size_wh", "best", "num_tiles", "grid_hw", "num_tokens"), GOLDEN, ids=lambda value: str(value)
)
def test_resolution_tiles_grid_and_tokens_are_the_golden_ones(
    size_wh: tuple[int, int], best: tuple[int, int], num_tiles: int, grid_hw: tuple[int, int], num_tokens: int
) -> None:
    size_hw = size_wh[1], size_wh[0]
    plan = packing_plan(size_hw, CARD)
    assert select_best_resolution(size_hw, CARD.grid_pinpoints) == best
    assert tile_plan(size_hw, CARD).num_tiles == num_tiles
    assert plan.grid_hw == grid_hw
    assert plan.num_tokens == num_image_tokens(size_hw, CARD) == num_tokens


@pytest.mark.parametrize(
    ("name", "sha256", "mean", "std"),
    [
        (
            "coco_000000039769.png",
            "218ae10dadcf11390a47fcf7f2c3801a78be393ea5c66a5047bc033539862f9a",
            -0.170231,
            0.645264,
        ),
        ("varco_card_ocr_1.png", "7abb54d6da9f3ae2787c67353cc9a057a5a0978fe78719b5a45c591a43e6b88f", 0.205871, None),
    ],
)
def test_the_tiles_of_the_photographs_are_the_golden_ones(
    name: str, sha256: str, mean: float, std: float | None
) -> None:
    if not (PHOTOGRAPHS / name).exists():
        pytest.skip(f"the photograph {name} is not part of the project and not beside it")
    tiles = tile(load_picture(PHOTOGRAPHS / name), CARD)
    assert hashlib.sha256(tiles.tobytes()).hexdigest() == sha256
    pixel_values = normalize(tiles, CARD)
    assert pixel_values.mean(dtype=np.float64) == pytest.approx(mean, abs=1e-6)
    assert std is None or pixel_values.std(dtype=np.float64) == pytest.approx(std, abs=1e-6)


# --- tiles -----------------------------------------------------------------------------------------------------------


def test_the_first_of_equal_resolutions_wins() -> None:
    assert select_best_resolution((100, 100), [(400, 200), (200, 400)]) == (400, 200)
    assert select_best_resolution((100, 100), [(200, 400), (400, 200)]) == (200, 400)


def test_the_base_tile_is_the_whole_picture_squashed() -> None:
    image = Image.fromarray(noise(60, 200))
    squashed = np.asarray(image.resize((114, 114), Image.Resampling.BICUBIC))
    assert (tile(load_picture(image), SMALL)[0] == squashed.transpose(2, 0, 1)).all()


@pytest.mark.parametrize("size_hw", [(60, 200), (201, 60), (77, 78), (1, 500), (1, 1), (500, 3)])
def test_the_grid_tiles_joined_are_the_picture_centred_on_black(size_hw: tuple[int, int]) -> None:
    image = Image.fromarray(noise(*size_hw))
    plan, tiles = tile_plan(size_hw, SMALL), tile(load_picture(image), SMALL)
    assert tiles.shape == (plan.num_tiles, 3, 114, 114)
    assert tiles.dtype == np.uint8
    rows = [np.concatenate(list(tiles[1 + r * plan.grid_cols :][: plan.grid_cols]), 2) for r in range(plan.grid_rows)]
    joined = np.concatenate(rows, 1).transpose(1, 2, 0)
    (top, left), (height, width) = plan.offset_tl, plan.resized_hw
    inside = joined[top : top + height, left : left + width].copy()
    assert (inside == np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))).all()
    joined[top : top + height, left : left + width] = 0
    assert not joined.any()


def test_an_odd_rest_of_padding_goes_to_the_right_and_the_bottom() -> None:
    assert tile_plan((100, 101), SMALL) == TilePlan(1, 1, (113, 114), (0, 0))
    assert tile_plan((111, 114), SMALL) == TilePlan(1, 1, (111, 114), (1, 0))


@pytest.mark.parametrize(("mean", "std"), [((0.5,) * 3, (0.5,) * 3), ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))])
def test_normalising_is_the_float32_formula_for_every_pixel_value(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    tiles = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    per_channel = np.array([mean, std], np.float32)[:, None, :, None, None]
    scaled = (tiles.astype(np.float64) * CARD.rescale_factor).astype(np.float32)
    pixel_values = normalize(tiles, replace(CARD, mean=mean, std=std))
    assert pixel_values.dtype == np.float32
    assert (pixel_values == (scaled - per_channel[0]) / per_channel[1]).all()


# --- the packing plan ------------------------------------------------------------------------------------------------


@given(SIZES_HW, SETTINGS)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_a_plan_is_a_convex_mix_of_rows_that_exist(size_hw: tuple[int, int], image: ImageSettings) -> None:
    plan = packing_plan(size_hw, image)
    assert plan.indices.dtype == np.int32
    assert plan.weights.dtype == np.float32
    assert plan.indices.shape == plan.weights.shape == (num_image_tokens(size_hw, image), 4)
    assert plan.newline_row == tile_plan(size_hw, image).num_tiles * image.patches_per_tile
    assert plan.indices.min() >= 0
    assert plan.indices.max() <= plan.newline_row
    assert plan.weights.min() >= 0
    assert np.abs(plan.weights.sum(axis=1) - 1).max() < 1e-6


@given(SIZES_HW, SETTINGS)
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_the_base_comes_first_without_newlines_and_every_grid_row_ends_with_one(
    size_hw: tuple[int, int], image: ImageSettings
) -> None:
    plan, per_tile = packing_plan(size_hw, image), image.patches_per_tile
    assert (plan.indices[:per_tile] == np.arange(per_tile)[:, None]).all()
    assert (plan.weights[:per_tile, 0] == 1).all()
    rows, cols = plan.grid_hw
    grid = plan.indices[per_tile:].reshape(rows, cols + 1, 4)
    assert (grid[:, -1] == plan.newline_row).all()
    assert (grid[:, :-1] >= per_tile).all()
    assert (grid[:, :-1] < plan.newline_row).all()


@given(SIZES_HW)
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_no_picture_has_more_tokens_than_the_bound(size_hw: tuple[int, int]) -> None:
    assert 729 < num_image_tokens(size_hw, CARD) <= 8829


@given(SIZES_HW)
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_without_shrinking_a_plan_reads_the_tiles_as_one_picture(size_hw: tuple[int, int]) -> None:
    """The window of an explicitly joined grid, against the plan's arithmetic of rows."""
    image = anyres(56, 14, side=4, max_grid_tiles=None)
    tiles, plan, side = tile_plan(size_hw, image), packing_plan(size_hw, image), image.patches_per_side
    assert plan.is_gather
    rows = np.arange(plan.newline_row).reshape(-1, side, side)[1:]
    joined = rows.reshape(tiles.grid_rows, tiles.grid_cols, side, side).transpose(0, 2, 1, 3)
    joined = joined.reshape(tiles.grid_rows * side, tiles.grid_cols * side)
    height, width = plan.grid_hw
    top, left = (joined.shape[0] - height) // 2, (joined.shape[1] - width) // 2
    taken = plan.indices[image.patches_per_tile :, 0].reshape(height, width + 1)[:, :-1]
    assert (taken == joined[top : top + height, left : left + width]).all()
    assert 2 * top + height == joined.shape[0]
    assert 2 * left + width == joined.shape[1]


def test_shrinking_samples_a_ramp_at_the_centres_of_the_larger_patches() -> None:
    plan, tiles = packing_plan((2304, 2304), CARD), tile_plan((2304, 2304), CARD)
    assert (tiles.grid_rows, tiles.grid_cols, plan.grid_hw) == (6, 6, (81, 81))
    assert not plan.is_gather
    x = np.arange(6 * 27).reshape(6, 27)  # [tile column, patch column]
    ramp = np.broadcast_to(x[None, :, None, :], (6, 6, 27, 27)).reshape(36, 729)
    features = np.concatenate([np.zeros((1, 729)), ramp]).astype(np.float32)[..., None]
    tokens = pack(features, np.array([-1], np.float32), plan)
    grid = tokens[729:, 0].reshape(81, 82)
    assert np.abs(grid[:, :-1] - ((np.arange(81) + 0.5) * 2 - 0.5)).max() < 1e-4
    assert (grid[:, -1] == -1).all()


def test_a_hair_thin_picture_may_have_no_grid_rows_at_all() -> None:
    flat = packing_plan((1, 5000), SMALL)
    assert flat.grid_hw == (0, 8)
    assert flat.num_tokens == num_image_tokens((1, 5000), SMALL) == 64
    tall = packing_plan((5000, 1), SMALL)
    assert tall.grid_hw == (8, 0)
    assert tall.num_tokens == num_image_tokens((5000, 1), SMALL) == 64 + 8
    features = np.zeros((2, 64, 3), np.float32)
    assert pack(features, np.ones(3, np.float32), tall)[-8:].all()


# --- packing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_hw", [(228, 228), (100, 300), (40, 30)], ids=["shrunk", "wide", "one tile"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_packing_is_the_weighted_sum_that_the_plan_says(size_hw: tuple[int, int], dtype: type) -> None:
    rng, plan = np.random.default_rng(0), packing_plan(size_hw, SMALL)
    features = rng.standard_normal((plan.newline_row, 20)).astype(dtype)
    newline = rng.standard_normal(20).astype(dtype)
    rows = np.concatenate([features, newline[None]]).astype(np.float64)
    expected = (rows[plan.indices] * plan.weights[..., None]).sum(axis=1)
    tokens = pack(features, newline, plan)
    assert tokens.dtype == dtype
    assert tokens.shape == (plan.num_tokens, 20)
    assert np.abs(tokens - expected).max() < (2e-6 if dtype == np.float32 else 2e-3)
    assert not plan.is_gather or (tokens == rows[plan.indices[:, 0]]).all()
    assert (pack(features.reshape(-1, SMALL.patches_per_tile, 20), newline, plan) == tokens).all()


def test_packing_allocates_little_besides_its_result() -> None:
    plan, dim = packing_plan((2304, 2304), CARD), 256
    features, newline = np.zeros((plan.newline_row, dim), np.float16), np.zeros(dim, np.float16)
    tracemalloc.start()
    tokens = pack(features, newline, plan)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < tokens.nbytes + 2**20


def test_packing_features_of_another_picture_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="Bug: the plan is for 128 rows, got 192"):
        pack(np.zeros((192, 4), np.float32), np.zeros(4, np.float32), packing_plan((100, 100), SMALL))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (replace(SMALL, grid_pinpoints=()), "have no grid_pinpoints"),
        (
            replace(SMALL, grid_pinpoints=((114, 200),)),
            r"grid_pinpoint \[114, 200\]. Expected multiples of tile_px 114",
        ),
        (replace(SMALL, grid_pinpoints=((0, 114),)), r"grid_pinpoint \[0, 114\]"),
        (replace(SMALL, patch_px=0), "patch_px 0 and tile_px 114"),
        (replace(SMALL, patch_px=115), "patch_px 115 and tile_px 114"),
        (replace(SMALL, max_grid_tiles=0), "max_grid_tiles 0. Expected at least 1"),
    ],
)
def test_settings_that_the_formulas_do_not_cover_are_refused(changed: ImageSettings, message: str) -> None:
    for refuse in (tile_plan, packing_plan, num_image_tokens):
        with pytest.raises(BundleError, match=message):
            refuse((100, 100), changed)


def test_a_standard_deviation_of_zero_is_refused() -> None:
    with pytest.raises(BundleError, match="Expected values other than 0"):
        normalize(np.zeros((1, 3, 2, 2), np.uint8), replace(SMALL, std=(0.5, 0.0, 0.5)))


@pytest.mark.parametrize("size_hw", [(0, 5), (5, 0), (-1, 5)])
def test_a_size_without_pixels_is_refused(size_hw: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=r"has no tiles\. Expected at least 1x1"):
        num_image_tokens(size_hw, CARD)


def test_a_picture_that_would_shrink_to_nothing_is_refused() -> None:
    thin = replace(anyres(28, 28, side=1, max_grid_tiles=1), grid_pinpoints=((28, 56),))
    with pytest.raises(ImageError, match="too thin: its 1x2 patches shrink to none"):
        packing_plan((28, 56), thin)
