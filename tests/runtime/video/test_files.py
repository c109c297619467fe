"""Frames of video files: the same ones whatever the container, and the same pixels however they are reached."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV, the extra `video`, is not installed")

from tests.makers.videos import Frames, animation, drawn_video, frame_folder, turned, video_file
from tests.runtime.video.test_video import tiles_hash
from varco_runtime import Video
from varco_runtime.video.budget import Budget
from varco_runtime.video.decoding import FileReader
from varco_runtime.video.opening import opened_file

TWO_A_SECOND = (0, 12, 25, 37, 50, 62, 75, 87)  # of 25: the frame that is shown at 0.5 s is number 12
SPREAD = (0, 14, 28, 42, 56, 70, 84, 99)
X264 = ("libx264", "yuv420p")
FILES = {
    "mp4": ("mp4", *X264),
    "mov": ("mov", *X264),
    "mkv": ("matroska", *X264),
    "ts": ("mpegts", *X264),
    "avi": ("avi", *X264),
    "webm": ("webm", "libvpx-vp9", "yuv420p"),
    "avi-mpeg4": ("avi", "mpeg4", "yuv420p"),
    "ts-mpeg2": ("mpegts", "mpeg2video", "yuv420p"),
    "mkv-ffv1": ("matroska", "ffv1", "bgr0"),
}
OPTIONS = {"webm": {"cpu_used": "8", "deadline": "realtime"}, "ts-mpeg2": {"bf": "2"}}


@functools.cache
def small_video() -> Frames:
    return drawn_video(100, 64, 48)


@functools.cache
def small_file(kind: str) -> bytes:
    return video_file(small_video(), *FILES[kind], **OPTIONS.get(kind, {}))


def frames_of(data: bytes, numbers: tuple[int, ...], *, sequentially: bool) -> list[Frames]:
    reader = FileReader(io.BytesIO(data), Budget("the video", 60))
    if sequentially:
        reader.recount()
    return [np.asarray(image) for image in reader.pictures(numbers)]


@pytest.mark.parametrize(
    ("frames", "golden"),
    [
        (8, "016d8ebc63ed2464fbb59416242bf1bd650aa3d698f5d833bbc58a096776d979"),
        (32, "c910d6c20e74652bea002d608606efcebc06c7f63552e741da4697ef33a24ac6"),
    ],
)
def test_a_lossless_file_gives_the_golden_tiles(frames: int, golden: str, tmp_path: Path) -> None:
    path = tmp_path / "drawn.mkv"
    path.write_bytes(video_file(drawn_video()))
    assert tiles_hash(Video(path, frames=frames).tiles(384)) == golden


def test_a_lossless_file_gives_every_bit_of_its_frames_back() -> None:
    frames = frames_of(small_file("mkv-ffv1"), tuple(range(100)), sequentially=False)
    assert np.array_equal(frames, small_video())


@pytest.mark.parametrize("kind", FILES)
def test_frames_and_times_are_the_same_in_every_container(kind: str) -> None:
    seen = Video(small_file(kind), frames=8).tiles(16)
    assert (seen.frames, seen.num_frames, seen.size) == (SPREAD, 100, (64, 48))
    assert seen.times_s == pytest.approx([number / 25 for number in SPREAD])
    assert Video(small_file(kind), fps=2).tiles(16).frames == TWO_A_SECOND


def test_frames_of_an_animation_are_the_same() -> None:
    for file_format in ("GIF", "WEBP"):
        seen = Video(animation(small_video(), file_format), frames=8).tiles(16)
        assert (seen.frames, seen.num_frames, seen.size) == (SPREAD, 100, (64, 48))
        assert seen.times_s == pytest.approx([number / 25 for number in SPREAD])
        assert Video(animation(small_video(), file_format), fps=2).tiles(16).frames == TWO_A_SECOND


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in FILES),
        ("mkv", {"x264_params": "open-gop=1:keyint=10:bframes=3"}),
        ("ts", {"x264_params": "open-gop=1:keyint=10:bframes=3"}),
    ],
)
def test_groups_that_are_left_out_change_no_frame(kind: str, options: dict[str, str]) -> None:
    data = video_file(small_video(), *FILES[kind], **options) if options else small_file(kind)
    for numbers in (SPREAD, (55,), (8, 9, 10, 11, 99)):
        skipping = frames_of(data, numbers, sequentially=False)
        assert np.array_equal(skipping, frames_of(data, numbers, sequentially=True))


def test_only_the_groups_that_hold_chosen_frames_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []

    def counted(self: FileReader, decoder: object, packet: object) -> object:
        decoded.extend([packet] if packet is not None else [])
        return original(self, decoder, packet)

    original = FileReader._frames_of
    monkeypatch.setattr(FileReader, "_frames_of", counted)
    frames_of(small_file("mp4"), (25, 71), sequentially=False)
    assert len(decoded) <= 20, "of ten groups of ten"


def test_every_frame_is_the_one_it_says() -> None:
    """Each drawn frame differs from its neighbours, so a frame off by one is nearer to another."""
    for kind in FILES:
        for number, frame in zip(SPREAD, frames_of(small_file(kind), SPREAD, sequentially=False), strict=True):
            near = range(max(0, number - 3), min(100, number + 4))
            distance = {other: np.abs(small_video()[other].astype(int) - frame).mean() for other in near}
            assert min(distance, key=distance.__getitem__) == number, kind


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_phones_rotation_is_applied(degrees: int) -> None:
    upright = Video(small_file("mp4"), frames=4).tiles(32)
    seen = Video(turned(small_file("mp4"), degrees), frames=4).tiles(32)
    assert seen.size == ((48, 64) if degrees != 180 else (64, 48))
    expected = np.rot90(upright.tiles, -degrees // 90, axes=(1, 2)).astype(int)
    assert np.abs(expected - seen.tiles).max() <= 8, "scaling along one side first rounds otherwise"


def test_a_path_an_open_file_and_bytes_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a video without a suffix"
    path.write_bytes(small_file("mp4"))
    with open(path, "rb") as file:
        file.seek(100)
        seen = [Video(source, frames=3).tiles(16) for source in (path, str(path), file, small_file("mp4"))]
        assert not file.closed
    assert seen == [seen[0]] * 4


def test_a_folder_gives_its_pictures_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = frame_folder(small_video()[:12], tmp_path / "frames")
    (folder / "notes.txt").write_text("no frame")
    (folder / ".hidden.png").write_bytes(b"no frame")
    seen = Video(folder, frames=5).tiles(48)
    assert seen == Video(small_video()[:12], frames=5).tiles(48)
    assert seen.times_s is None


def test_an_animation_gives_the_pixels_of_its_frames() -> None:
    frames = small_video()[:7]
    assert np.array_equal(
        Video(animation(frames, "WEBP"), frames=4).tiles(32).tiles, Video(frames, frames=4).tiles(32).tiles
    )
    gray = np.repeat(frames[..., :1], 3, axis=3)  # 256 colours, so that a GIF keeps them
    assert np.array_equal(
        Video(animation(gray, "GIF"), frames=4).tiles(32).tiles, Video(gray, frames=4).tiles(32).tiles
    )


def test_a_gif_whose_frames_are_shown_for_no_time_plays_as_browsers_play_it() -> None:
    reader = opened_file(io.BytesIO(animation(small_video()[:3], "GIF", duration_ms=0)), Budget("the video", 60))
    assert reader.times_s == [0.0, 0.1, 0.2]


def test_frames_that_an_edit_list_cuts_off_do_not_count() -> None:
    """Phones and editors trim an mp4 by an edit list: the packets in front of it stay, and are decoded, not shown."""
    data = small_file("mp4")
    at = data.index(b"elst") + 12  # duration and start of its only entry
    start = int.from_bytes(data[at + 4 : at + 8], "big")
    units = int.from_bytes(data[data.index(b"mdhd") + 16 : data.index(b"mdhd") + 20], "big")  # in a second
    cut = data[: at + 4] + (start + 5 * units // 25).to_bytes(4, "big") + data[at + 8 :]
    reader = FileReader(io.BytesIO(cut), Budget("the video", 60))
    assert reader.num_frames == 95
    assert np.array_equal(
        [np.asarray(image) for image in reader.pictures((0, 7))], frames_of(data, (5, 12), sequentially=False)
    )
