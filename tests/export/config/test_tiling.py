"""What an export chooses about pictures: tiling presets, and how large a picture is shown for its text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import export_bundle
from tests.makers.manifests import forge, set_at
from varco_export.config.tiling import preset_tiling
from varco_export.options import ExportOptions, check_options
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime.bundle.manifest import Manifest
from varco_runtime.bundle.opening import Bundle
from varco_runtime.errors import BundleError, UsageError
from varco_runtime.picture.packing import largest_picture, num_image_tokens
from varco_runtime.probes.facts import bundle_facts, differences
from varco_runtime.probes.file import Probes, probes_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = TinyOptions(
        text="qwen3", image_size=48, patch_size=16, num_hidden_layers=1, max_position_embeddings=40_960
    )
    return make_tiny(tmp_path_factory.mktemp("tiling") / "checkpoint", options)


def manifest(folder: Path) -> Manifest:
    return Bundle.open(folder).manifest


def grids(bundle: Manifest) -> list[tuple[int, int]]:
    side = bundle.image.tile_px
    return [(height // side, width // side) for height, width in bundle.image.grid_pinpoints]


def test_a_qwen3_checkpoint_with_the_markup_is_read_at_2304_pixels(checkpoint: Path, tmp_path: Path) -> None:
    made = manifest(export_bundle(checkpoint, tmp_path / "bundle"))
    assert made.image.ocr_long_side_px == 2304
    assert made.image.max_grid_tiles == 9
    assert made.max_context == 10_240
    assert grids(made) == [(rows, cols) for rows in range(1, 7) for cols in range(1, 7)]


@pytest.mark.parametrize(("asked", "fact"), [(0, None), (1000, 1000)])
def test_the_long_side_is_as_asked(checkpoint: Path, tmp_path: Path, asked: int, fact: int | None) -> None:
    assert manifest(export_bundle(checkpoint, tmp_path / "b", ocr_long_side=asked)).image.ocr_long_side_px == fact


def test_a_qwen2_bundle_says_nothing_of_it(tiny_bundle: Path) -> None:
    assert "ocr_long_side_px" not in json.loads((tiny_bundle / "bundle.json").read_text())["image"]


def test_four_tiles_are_grids_of_at_most_four_without_a_side_of_four(checkpoint: Path, tmp_path: Path) -> None:
    made = manifest(export_bundle(checkpoint, tmp_path / "bundle", max_grid_tiles=4))
    assert grids(made) == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1)]
    assert made.image.max_grid_tiles == 4
    assert largest_picture(made.image)[0] == 5


def test_sixteen_tiles_are_grids_of_8_by_8_in_a_context_that_holds_them(checkpoint: Path, tmp_path: Path) -> None:
    made = manifest(export_bundle(checkpoint, tmp_path / "bundle", max_grid_tiles=16))
    assert grids(made) == [(rows, cols) for rows in range(1, 9) for cols in range(1, 9)]
    assert made.image.max_grid_tiles == 16
    assert largest_picture(made.image)[0] == 65
    assert made.max_context == 16_384


@pytest.mark.parametrize("patch_px", [14, 16])
def test_the_context_of_sixteen_tiles_holds_the_largest_picture_and_1024_tokens(
    patch_px: int, tiny_bundle: Path
) -> None:
    image = replace(manifest(tiny_bundle).image, tile_px=384, patch_px=patch_px)
    assert largest_picture(preset_tiling(image, 16))[1] + 1024 < 16_384


def test_the_preset_of_nine_is_the_cards_own_tiling(checkpoint: Path, tmp_path: Path) -> None:
    own, asked = (export_bundle(checkpoint, tmp_path / name, max_grid_tiles=n) for name, n in (("a", None), ("b", 9)))
    assert manifest(own).image == manifest(asked).image


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"max_grid_tiles": 5}, "--max-grid-tiles 5 is no preset. Expected one of: 4, 9, 16; leave it out"),
        ({"ocr_long_side": -1}, "--ocr-long-side -1 is out of range. Expected pixels, at most 8192, or 0"),
        ({"ocr_long_side": 8193}, "--ocr-long-side 8193 is out of range."),
    ],
)
def test_other_values_are_refused_before_a_checkpoint_is_opened(options: dict[str, int], line: str) -> None:
    with pytest.raises(UsageError) as refusal:
        check_options(ExportOptions(**options))  # type: ignore[arg-type]
    assert str(refusal.value).startswith(line)


@pytest.mark.parametrize("long_side", [0, 8193, "2304", 1.5, True])
def test_a_forged_fact_is_refused(checkpoint: Path, tmp_path: Path, long_side: object) -> None:
    folder = export_bundle(checkpoint, tmp_path / "bundle")
    forge(folder, set_at("image/ocr_long_side_px", long_side))
    with pytest.raises(BundleError, match=r"image\.ocr_long_side_px is"):
        Bundle.open(folder)


# --- acceptance probes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("probed") / "bundle"
    return export_bundle(checkpoint, target, max_grid_tiles=4, ocr_long_side=600, probes=True)


def probes(bundle: Bundle) -> Probes:
    name = bundle.manifest.probes
    assert name is not None
    return probes_of(json.loads(bundle.text(name)), bundle.manifest)


def test_a_preset_is_no_difference_from_the_checkpoint(probed: Path) -> None:
    bundle = Bundle.open(probed)
    recorded = probes(bundle).facts
    assert recorded["image.max_grid_tiles"] == 4
    assert "image.ocr_long_side_px" not in recorded
    assert differences(recorded, bundle_facts(bundle)) == ()
    assert num_image_tokens((480, 640), bundle.manifest.image) < num_image_tokens(
        (480, 640), preset_tiling(bundle.manifest.image, 9)
    )


def test_a_preset_without_one_of_its_grids_is_found(probed: Path) -> None:
    bundle = Bundle.open(probed)
    recorded, found = probes(bundle).facts, bundle_facts(bundle)
    found["image.grid_pinpoints"] = found["image.grid_pinpoints"][1:]
    (line,) = differences(recorded, found)
    assert line.startswith("image.grid_pinpoints")
