"""Tiles, token counts and packing against transformers, on many sizes and two shapes of checkpoint."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.packing import num_image_tokens, pack, packing_plan
from varco_runtime.picture.tiles import normalize, tile, tile_plan

torch = pytest.importorskip("torch", reason="the reference needs torch (extra 'quantize')")
pytest.importorskip("transformers", reason="the reference needs transformers (extra 'quantize')")
from transformers.models.llava_onevision import (  # noqa: E402
    image_processing_pil_llava_onevision as reference_image,
)
from transformers.models.llava_onevision import modeling_llava_onevision as reference_model  # noqa: E402
from transformers.models.llava_onevision import processing_llava_onevision as reference_processor  # noqa: E402

FLOAT32 = 1e-4  # places up to 162 are rounded by each kind of processor in its own way; a wrong one is off by 0.1
FLOAT16 = 4e-3  # one step of float16 at 4


def anyres(tile_px: int, patch_px: int, side: int, max_grid_tiles: int) -> ImageSettings:
    grids = range(1, side + 1)
    pinpoints = tuple((tile_px * rows, tile_px * cols) for rows in grids for cols in grids)
    return ImageSettings(tile_px, patch_px, pinpoints, max_grid_tiles, (0.5,) * 3, (0.5,) * 3, 0.00392156862745098)


CARD = anyres(384, 14, side=6, max_grid_tiles=9)
SMALL = anyres(114, 14, side=2, max_grid_tiles=3)
BOTH = pytest.mark.parametrize("settings", [CARD, SMALL], ids=["384px", "114px"])
EDGES_HW = [(1, 1), (1, 2), (2, 1), (1, 729), (729, 1), (1, 3000), (2, 3000), (3000, 1), (3000, 2), (480, 640)]
EDGES_HW += [(1008, 336), (1168, 960), (1080, 1920), (2304, 2304), (2304, 1900), (3000, 4000), (385, 383), (115, 113)]


def sizes(count: int, largest: int, seed: int) -> list[tuple[int, int]]:
    rng = random.Random(seed)
    return [(rng.randint(1, largest), rng.randint(1, largest)) for _ in range(count)]


def pinpoints(settings: ImageSettings) -> list[list[int]]:
    return [list(pin) for pin in settings.grid_pinpoints]


def reference_tokens(size_hw: tuple[int, int], settings: ImageSettings) -> int:
    """How many placeholders transformers' processor writes; its method reads nothing of the processor but these."""
    processor: Any = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=pinpoints(settings)),
        num_image_tokens=settings.patches_per_tile,
        vision_aspect_ratio=f"anyres_max_{settings.max_grid_tiles}",
    )
    cls = reference_processor.LlavaOnevisionProcessor
    processor._get_unpadded_features = lambda *args: cls._get_unpadded_features(processor, *args)
    return int(cls._get_number_of_features(processor, *size_hw, settings.tile_px, settings.tile_px))


def reference_pack(features: Any, newline: Any, size_hw: tuple[int, int], settings: ImageSettings) -> Any:
    """transformers' `pack_image_features`, which reads nothing of the model but its config."""
    vision = SimpleNamespace(image_size=settings.tile_px, patch_size=settings.patch_px)
    model: Any = SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints(settings)))
    packed, lengths = reference_model.LlavaOnevisionModel.pack_image_features(
        model, [features], torch.tensor([size_hw]), newline, f"anyres_max_{settings.max_grid_tiles}"
    )
    assert lengths.tolist() == [len(packed[0])]
    return packed[0].numpy()


def assert_tiles_are_identical(size_hw: tuple[int, int], settings: ImageSettings) -> None:
    array = np.random.default_rng(sum(size_hw)).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    picture = load_picture(array)
    processor = reference_image.LlavaOnevisionImageProcessorPil(
        size={"height": settings.tile_px, "width": settings.tile_px},
        image_grid_pinpoints=pinpoints(settings),
        image_mean=list(settings.mean),
        image_std=list(settings.std),
    )
    expected = processor(picture.image, return_tensors="np")
    assert tuple(expected["image_sizes"][0]) == picture.size_hw
    pixel_values = normalize(tile(picture, settings), settings)
    assert pixel_values.dtype == expected["pixel_values"].dtype
    assert np.array_equal(pixel_values, expected["pixel_values"][0]), f"tiles differ at {size_hw}"


def assert_packing_agrees(size_hw: tuple[int, int], settings: ImageSettings, dtype: type, tolerance: float) -> None:
    rng, plan = np.random.default_rng(sum(size_hw)), packing_plan(size_hw, settings)
    shape = (tile_plan(size_hw, settings).num_tiles, settings.patches_per_tile, 8)
    features, newline = rng.standard_normal(shape).astype(dtype), rng.standard_normal(8).astype(dtype)
    expected = reference_pack(torch.from_numpy(features), torch.from_numpy(newline), size_hw, settings)
    tokens = pack(features, newline, plan)
    assert (tokens.shape, tokens.dtype) == (expected.shape, expected.dtype), f"at {size_hw}"
    assert np.abs(tokens.astype(np.float64) - expected).max() <= tolerance, f"packing differs at {size_hw}"
    assert not plan.is_gather or np.array_equal(tokens, expected)


@BOTH
def test_pixel_values_are_bit_identical_to_transformers(settings: ImageSettings) -> None:
    few = [(1, 1), (1, 729), (480, 640), (1008, 336), (385, 383), (115, 113), *sizes(4, 900, seed=0)]
    for size_hw in few:
        assert_tiles_are_identical(size_hw, settings)


@pytest.mark.parametrize(("mean", "std"), [((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))])
def test_pixel_values_are_bit_identical_with_a_mean_per_channel(mean: Any, std: Any) -> None:
    settings = ImageSettings(114, 14, SMALL.grid_pinpoints, 3, mean, std, SMALL.rescale_factor)
    assert_tiles_are_identical((90, 200), settings)


@BOTH
def test_packing_agrees_with_transformers_in_float32(settings: ImageSettings) -> None:
    for size_hw in [*EDGES_HW, *sizes(30, 4000, seed=1)]:
        assert_packing_agrees(size_hw, settings, np.float32, FLOAT32)


@BOTH
def test_packing_agrees_with_transformers_in_float16(settings: ImageSettings) -> None:
    for size_hw in [*EDGES_HW, *sizes(10, 4000, seed=2)]:
        assert_packing_agrees(size_hw, settings, np.float16, FLOAT16)


@BOTH
def test_token_counts_agree_with_the_processor_and_the_plan(settings: ImageSettings) -> None:
    for size_hw in [*EDGES_HW, *sizes(3000, 4000, seed=3), *sizes(1500, 300, seed=4)]:
        assert num_image_tokens(size_hw, settings) == reference_tokens(size_hw, settings), f"at {size_hw}"


@pytest.mark.full
@BOTH
def test_token_counts_agree_for_every_small_size(settings: ImageSettings) -> None:
    for height in range(1, 201):
        for width in range(1, 201):
            assert num_image_tokens((height, width), settings) == reference_tokens((height, width), settings)


@pytest.mark.full
@BOTH
def test_pixel_values_are_bit_identical_on_many_sizes(settings: ImageSettings) -> None:
    for size_hw in [*EDGES_HW, *sizes(40, 2500, seed=5)]:
        assert_tiles_are_identical(size_hw, settings)


@pytest.mark.full
@BOTH
def test_packing_agrees_with_transformers_on_many_sizes(settings: ImageSettings) -> None:
    for size_hw in sizes(600, 5000, seed=6):
        assert_packing_agrees(size_hw, settings, np.float32, FLOAT32)
