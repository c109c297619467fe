"""Pictures scaled up for OCR, and the figures of VARCO-VISION 2.0: tiles of 24x24 patches."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.runtime.picture.test_packing import PHOTOGRAPHS, anyres, noise
from varco_runtime.bundle.settings import MAX_LONG_SIDE_PX
from varco_runtime.picture.bounds import MAX_PIXELS
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.packing import largest_picture, num_image_tokens, packing_plan
from varco_runtime.picture.scaling import upscaled, upscaled_hw
from varco_runtime.picture.tiles import tile, tile_plan

LONG_SIDE = 2304
CARD = anyres(384, 16, side=6, max_grid_tiles=9)

# picture (width, height), its grid (rows, columns), tiles and tokens; the same scaled up for OCR
GOLDEN = [
    ((640, 480), (36, 48), 5, 2340, (2304, 1728), (62, 83), 31, 5784),
    ((1304, 732), (48, 86), 9, 4752, (2304, 1293), (53, 96), 25, 5717),
    ((384, 384), (24, 24), 2, 1176, (2304, 2304), (72, 72), 37, 5832),
    ((1, 1), (24, 24), 2, 1176, (2304, 2304), (72, 72), 37, 5832),
    ((336, 1008), (72, 24), 4, 2376, (768, 2304), (124, 41), 13, 5784),
    ((1920, 1080), (54, 95), 16, 5760, (2304, 1296), (54, 95), 25, 5760),
    ((960, 1168), (79, 65), 13, 5790, (1893, 2304), (79, 65), 31, 5790),
    ((1240, 1754), (86, 60), 21, 5822, (1628, 2304), (85, 60), 31, 5761),
    ((2480, 3508), (85, 60), 31, 5761, (2480, 3508), (85, 60), 31, 5761),
]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: "{}x{}".format(*golden[0]))
def test_tiles_and_tokens_are_the_golden_ones_as_it_is_and_scaled_up(golden: tuple) -> None:  # type: ignore[type-arg]
    (width, height), *as_it_is, scaled_wh, grid_hw, num_tiles, num_tokens = golden
    scaled_hw = upscaled_hw((height, width), LONG_SIDE)
    assert scaled_hw == scaled_wh[::-1]
    for size_hw, expected in (((height, width), as_it_is), (scaled_hw, [grid_hw, num_tiles, num_tokens])):
        plan = packing_plan(size_hw, CARD)
        assert [plan.grid_hw, tile_plan(size_hw, CARD).num_tiles, plan.num_tokens] == expected
        assert num_image_tokens(size_hw, CARD) == plan.num_tokens


def test_the_largest_picture_of_24_by_24_patches_fits_the_default_context_with_3000_to_spare() -> None:
    assert num_image_tokens((2080, 768), CARD) == 6946
    assert packing_plan((2080, 768), CARD).grid_hw == (130, 48)
    tiles, tokens = largest_picture(CARD)
    assert (tiles, tokens) >= (37, 6946)
    assert tokens + 3000 < 10_240


def test_a_line_of_pixels_has_no_row_of_the_grid() -> None:
    assert num_image_tokens((1, 729), CARD) == 576


@pytest.mark.parametrize(("size_wh", "num_tiles", "num_tokens"), [((1920, 1080), 16, 8804), ((2480, 3508), 49, 9810)])
def test_sixteen_tiles_on_grids_of_8_by_8(size_wh: tuple[int, int], num_tiles: int, num_tokens: int) -> None:
    size_hw, sixteen = size_wh[::-1], anyres(384, 16, side=8, max_grid_tiles=16)
    assert tile_plan(size_hw, sixteen).num_tiles == num_tiles
    assert num_image_tokens(size_hw, sixteen) == num_tokens
    assert largest_picture(sixteen)[0] == 65


def test_the_tiles_of_the_scaled_card_are_the_golden_ones() -> None:
    """Recorded from Pillow alone: `image.resize((2304, 1293), BICUBIC)`, then the tiles of that picture."""
    path = PHOTOGRAPHS / "varco_card_ocr_1.png"
    if not path.exists():
        pytest.skip("the card's picture is not part of the project and not beside it")
    scaled = upscaled(load_picture(path), LONG_SIDE)
    assert hashlib.sha256(scaled.image.tobytes()).hexdigest() == (
        "10395281c98483376a4818e4e2a4ba5c48155f7a7562eed922f0da71cc549c21"
    )
    tiles = tile(scaled, CARD)
    assert hashlib.sha256(tiles.tobytes()).hexdigest() == (
        "370bf09772b3f43350242adcba04532cef82d1ea6e73958229dd067235bccd81"
    )


@pytest.mark.parametrize("size_hw", [(60, 200), (200, 60), (100, 100), (1, 7)])
def test_scaled_pixels_are_pillows_own(size_hw: tuple[int, int]) -> None:
    image, (height, width) = Image.fromarray(noise(*size_hw)), size_hw
    longest = max(width, height)
    expected = image.resize((int(width * 500 / longest), int(height * 500 / longest)), Image.Resampling.BICUBIC)
    scaled = upscaled(load_picture(image), 500)
    assert (scaled.width, scaled.height) == expected.size
    assert (scaled.rgb() == np.asarray(expected)).all()


def test_a_picture_is_never_scaled_down_and_0_leaves_it_as_it_is() -> None:
    picture = load_picture(noise(60, 200))
    assert upscaled(picture, 0) is upscaled(picture, 199) is upscaled(picture, 200) is picture


def test_a_scaled_picture_is_another_one_for_the_caches(tmp_path: Path) -> None:
    picture = load_picture(noise(60, 200))
    digests = {picture.digest, upscaled(picture, 300).digest, upscaled(picture, 301).digest}
    assert len(digests) == 3
    assert upscaled(picture, 300).digest in digests


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.integers(1, 1_000_000), st.integers(1, 1_000_000), st.integers(1, MAX_LONG_SIDE_PX))
def test_the_long_side_is_reached_exactly_within_the_bounds_of_pictures(
    height: int, width: int, long_side: int
) -> None:
    scaled = upscaled_hw((height, width), long_side)
    assert max(scaled) == max(long_side, height, width)
    assert min(scaled) >= 1
    if scaled != (height, width):
        assert scaled[0] * scaled[1] <= MAX_PIXELS
        assert scaled[0] >= height
        assert scaled[1] >= width
