"""Several pictures and videos: their tiles by published hashes, their tokens by published counts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.makers.media import drawn_clip, drawn_frames
from tests.runtime.picture.test_packing import CARD, PHOTOGRAPHS, anyres, noise
from varco_runtime import Video
from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.errors import UsageError
from varco_runtime.picture import tiles as tiles_module
from varco_runtime.picture.loading import Picture, load_picture
from varco_runtime.picture.media import Clip, Medium, parts, tilings
from varco_runtime.picture.packing import media_plan, num_medium_tokens, pack, packing_plan
from varco_runtime.picture.tiles import media_tiles, normalize, num_tiles, tile

CATS, OCR = "coco_000000039769.png", "varco_card_ocr_1.png"
PADDED = {
    CATS: ("526d5130addaa772073159481f562a728ce54cfe4efdfea6e65ffe565e5f2246", 0.026922),
    OCR: ("150b6e95df3fbcf79c983b1c44011a0be2a93efcde107db71f43f97d545a76e7", 0.186388),
}
DRAWN = {
    8: "016d8ebc63ed2464fbb59416242bf1bd650aa3d698f5d833bbc58a096776d979",
    32: "c910d6c20e74652bea002d608606efcebc06c7f63552e741da4697ef33a24ac6",
}
PATCHES_16 = anyres(384, 16, side=6, max_grid_tiles=9)
PATCHES_8 = anyres(64, 8, side=6, max_grid_tiles=9)


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def clip(num_frames: int, settings: ImageSettings = CARD, seed: int = 0) -> Clip:
    return drawn_clip(num_frames, settings.tile_px, seed)


# --- golden figures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PADDED)
def test_one_of_several_pictures_is_one_padded_tile(name: str) -> None:
    path = PHOTOGRAPHS / name
    if not path.exists():
        pytest.skip("the photographs are not here")
    tiles = media_tiles([Medium(load_picture(path), "one")], CARD)
    assert (sha256(tiles), tiles.shape) == (PADDED[name][0], (1, 3, 384, 384))
    assert float(normalize(tiles, CARD).mean()) == pytest.approx(PADDED[name][1], abs=1e-6)


def test_an_odd_difference_pads_more_below(shared: Path) -> None:
    image = Image.open(shared / "images" / CATS).convert("RGB").resize((641, 479))
    tiles = media_tiles([Medium(load_picture(image), "one")], CARD)
    assert sha256(tiles) == "40c121a4a01a2de048c1107727fd53006f1984488d1a63451afacd4147264811"


@pytest.mark.parametrize("num_frames", DRAWN)
def test_a_videos_frames_are_squashed(num_frames: int) -> None:
    seen = Video(drawn_frames(100), frames=num_frames).tiles(384)
    if num_frames == 8:
        assert seen.frames == (0, 14, 28, 42, 56, 70, 84, 99)
    shown = Clip(seen.tiles, seen.frames, seen.times_s, *seen.size, seen.digest)
    assert sha256(media_tiles([Medium(shown, "frames")], CARD)) == DRAWN[num_frames]


@pytest.mark.parametrize(
    ("settings", "one", "frame"), [(CARD, 730, 196), (PATCHES_16, 577, 144), (PATCHES_8, 65, 16)], ids=["27", "24", "8"]
)
def test_tokens_are_counted_by_the_towers_patches(settings: ImageSettings, one: int, frame: int) -> None:
    picture = load_picture(noise(48, 64))
    assert num_medium_tokens(Medium(picture, "one"), settings) == one
    for num_frames in (1, 8, 32):
        medium = Medium(clip(num_frames, settings), "frames")
        assert num_medium_tokens(medium, settings) == num_frames * frame + 1
        assert num_tiles(medium, settings) == num_frames


# --- which tiling ----------------------------------------------------------------------------------------------------


def test_the_number_of_pictures_decides_and_a_video_is_none() -> None:
    a, b, video = load_picture(noise(8, 9)), load_picture(noise(9, 8)), clip(2)

    def tiled(sources: list[Picture | Clip], tiling: str = "auto") -> list[str]:
        return [medium.tiling for medium in tilings(sources, tiling)]

    assert tiled([a]) == ["grid"]
    assert tiled([a, video]) == ["grid", "frames"]
    assert tiled([a, video, b]) == ["one", "frames", "one"]
    assert tiled([a, b, video], "grid") == ["grid", "grid", "frames"]
    assert tiled([a, video], "one") == ["one", "frames"]
    with pytest.raises(UsageError, match="tiling='both' is unknown"):
        tilings([a], "both")


# --- one plan over all -----------------------------------------------------------------------------------------------


def test_one_picture_has_the_tiles_and_the_plan_of_before() -> None:
    picture = load_picture(noise(90, 130))
    medium = Medium(picture, "grid")
    np.testing.assert_array_equal(media_tiles([medium], CARD), tile(picture, CARD))
    plan, before = media_plan([medium], CARD), packing_plan(picture.size_hw, CARD)
    np.testing.assert_array_equal(plan.indices, before.indices)
    np.testing.assert_array_equal(plan.weights, before.weights)
    assert (plan.newline_row, plan.grid_hw) == (before.newline_row, before.grid_hw)


def test_a_plan_over_all_is_each_ones_plan() -> None:
    settings = PATCHES_8
    media = [
        Medium(load_picture(noise(90, 130)), "grid"),
        Medium(clip(3, settings), "frames"),
        Medium(load_picture(noise(20, 70)), "one"),
    ]
    plan = media_plan(media, settings)
    assert len(media_tiles(media, settings)) * settings.patches_per_tile == plan.newline_row
    rng = np.random.default_rng(0)
    features = rng.standard_normal((plan.newline_row, 5)).astype(np.float32)
    newline = rng.standard_normal(5).astype(np.float32)
    apart, first = [], 0
    for medium in media:
        own = media_plan([medium], settings)
        assert own.num_tokens == num_medium_tokens(medium, settings)
        apart.append(pack(features[first : first + own.newline_row], newline, own))
        first += own.newline_row
    np.testing.assert_array_equal(pack(features, newline, plan), np.concatenate(apart))


def test_parts_of_a_video_make_its_tiles_and_tokens() -> None:
    settings = PATCHES_8
    whole = Medium(clip(7, settings), "frames")
    cut = list(parts(whole, 3))
    assert [len(part.source.tiles) for part in cut if isinstance(part.source, Clip)] == [3, 3, 1]
    assert len({part.key for part in cut}) == 3
    np.testing.assert_array_equal(media_tiles(cut, settings), media_tiles([whole], settings))
    features = np.random.default_rng(0).standard_normal((7 * settings.patches_per_tile, 5)).astype(np.float32)
    newline = np.ones(5, np.float32)
    joined = pack(features, newline, media_plan(cut, settings))
    np.testing.assert_array_equal(joined, pack(features, newline, media_plan([whole], settings)))


@pytest.mark.parametrize("side", [27, 24, 13, 8])
def test_pooling_is_torchs_interpolation(side: int) -> None:
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    settings = ImageSettings(side * 14, 14, ((side * 14, side * 14),), 9, (0.5,) * 3, (0.5,) * 3, 1 / 255)
    features = np.random.default_rng(0).standard_normal((3, side * side, 16)).astype(np.float32)
    plan = media_plan([Medium(clip(3, settings), "frames")], settings)
    got = pack(features, np.zeros(16, np.float32), plan)[:-1].reshape(3, -1, 16)
    grid = torch.from_numpy(features).view(3, side, side, 16).permute(0, 3, 1, 2)
    pooled = torch.nn.functional.interpolate(grid, size=(-(-side // 2),) * 2, mode="bilinear")
    wanted = pooled.permute(0, 2, 3, 1).reshape(3, -1, 16).numpy()
    assert np.abs(got - wanted).max() < 3e-7


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_hw", [(30, 900), (900, 30), (1, 700), (500, 170)])
def test_a_thin_picture_is_padded_without_its_square(size_hw: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its square may take terabytes. The passes change places for tall pictures: one level of rounding."""
    picture = load_picture(noise(*size_hw))
    square = tiles_module.padded_tile(picture, 58)
    monkeypatch.setattr(tiles_module, "MAX_PIXELS", 0)
    thin = tiles_module.padded_tile(picture, 58)
    assert np.abs(thin.astype(int) - square).max() <= 1


def test_the_thinnest_picture_is_padded_in_little_memory() -> None:
    picture = load_picture(np.zeros((40, 999_999, 3), np.uint8))
    padded = tiles_module.padded_tile(picture, 384)
    assert padded.shape == (384, 384, 3)
    assert (padded[0] == 127).all()
