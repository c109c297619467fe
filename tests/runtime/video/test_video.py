"""Which frames of a video are seen, and that they are the golden ones."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from tests.makers.refusals import refusal
from tests.makers.videos import drawn_video
from varco_runtime import Video
from varco_runtime.errors import VideoError
from varco_runtime.video import VideoTiles
from varco_runtime.video.choice import choose_frames
from varco_runtime.video.tiles import squash


def tiles_hash(seen: VideoTiles) -> str:
    """The sha256 of the tiles as the vision tower takes them, uint8 [F, 3, S, S]."""
    return hashlib.sha256(np.ascontiguousarray(seen.tiles.transpose(0, 3, 1, 2)).tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("frames", "golden"),
    [
        (8, "016d8ebc63ed2464fbb59416242bf1bd650aa3d698f5d833bbc58a096776d979"),
        (32, "c910d6c20e74652bea002d608606efcebc06c7f63552e741da4697ef33a24ac6"),
    ],
)
def test_tiles_of_the_drawn_video_are_the_golden_ones(frames: int, golden: str) -> None:
    seen = Video(drawn_video(), frames=frames).tiles(384)
    assert tiles_hash(seen) == golden
    assert (seen.tiles.shape, seen.size, seen.num_frames) == ((frames, 384, 384, 3), (320, 240), 100)


def test_frames_are_spread_evenly_and_none_comes_twice() -> None:
    assert choose_frames(100, None, 8, None) == (0, 14, 28, 42, 56, 70, 84, 99)
    assert choose_frames(5, None, 32, None) == (0, 1, 2, 3, 4)
    assert choose_frames(1, None, 8, None) == (0,)


def test_equal_tiles_have_equal_digests_and_are_computed_once() -> None:
    video = Video(drawn_video(9, 40, 30), frames=4)
    seen = video.tiles(32)
    assert video.tiles(32) is seen
    assert not seen.tiles.flags.writeable
    assert Video(drawn_video(9, 40, 30), frames=4).tiles(32) == seen
    assert Video(drawn_video(9, 40, 30), frames=3).tiles(32).digest != seen.digest
    assert video.tiles(16).digest != seen.digest


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.zeros((2, 4, 4), np.uint8), r"uint8 \[2, 4, 4\]"),
        (np.zeros((2, 4, 4, 4), np.uint8), r"uint8 \[2, 4, 4, 4\]"),
        (np.zeros((2, 4, 4, 3), np.float32), r"float32 \[2, 4, 4, 3\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"uint8 \[0, 4, 4, 3\]"),
        (np.broadcast_to(np.uint8(0), (1, 10_000, 10_000, 3)), "10000x10000 pixels"),
    ],
)
def test_an_array_of_another_shape_or_type_is_refused(array: np.ndarray, got: str) -> None:
    with pytest.raises(VideoError, match=got):
        Video(array)


@pytest.mark.parametrize(
    "options", [{"frames": 0}, {"frames": -1}, {"frames": True}, {"frames": 2.0}, {"fps": 0}, {"fps": float("nan")}]
)
def test_numbers_that_cannot_be_are_refused(options: dict) -> None:
    assert "Expected a" in refusal(lambda: Video("clip.mp4", **options), VideoError)


@pytest.mark.parametrize("size_wh", [(1, 1), (7, 900), (900, 7), (384, 250), (250, 384), (384, 384), (701, 433)])
def test_a_tile_scaled_in_bands_is_the_one_that_pillow_makes_of_the_whole(size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    frame = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    assert np.array_equal(squash(frame, 384), squash(Image.fromarray(frame), 384))
