"""What is no video, or costs too much, is refused in one line."""

from __future__ import annotations

import io
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.makers.picture_files import encoded
from tests.makers.refusals import assert_matches, refusal
from tests.makers.videos import animation, drawn_video, frame_folder, sound_file, video_file
from varco_runtime import Video
from varco_runtime.errors import MissingExtraError, VideoError
from varco_runtime.video import budget, container
from varco_runtime.video.budget import Budget
from varco_runtime.video.decoding import FileReader


def refused(source: Any, pattern: str, **options: Any) -> None:
    assert_matches(pattern, refusal(lambda: Video(source, **options).tiles(16), VideoError))


def small(container_: str = "mp4", codec: str = "mpeg4", pixels: str = "yuv420p", **options: Any) -> bytes:
    return video_file(drawn_video(30, 64, 48), container_, codec, pixels, **options)


# --- no video ---------------------------------------------------------------------------------------------------------


def test_text_a_picture_and_nothing_are_no_videos_whatever_their_names(tmp_path: Path) -> None:
    pytest.importorskip("av")
    for data, pattern in [
        (b"What happens in this video?\n" * 50, "is not a video in a format that is read: Invalid data"),
        (encoded(Image.new("RGB", (32, 32))), r"is a picture \(PNG\) and no video. Give it as a picture"),
        (b"", r"is empty \(0 bytes\)"),
        (b"OggS" + bytes(200), "is not a video in a format that is read"),
    ]:
        path = tmp_path / "clip.mp4"
        path.write_bytes(data)
        refused(path, rf"clip\.mp4' {pattern}")


def test_a_file_of_sound_has_no_video_stream() -> None:
    pytest.importorskip("av")
    refused(sound_file(), "^the video has no video stream")


def test_the_cover_of_a_sound_file_is_no_video(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    monkeypatch.setattr(container, "_COVER", 1)  # as if the disposition that an encoder sets by itself were this one
    refused(small(), "has no video stream")


def test_paths_that_lead_to_no_video(tmp_path: Path) -> None:
    refused(tmp_path / "none.mp4", r"none\.mp4' cannot be opened: No such file")
    refused("nul\0.mp4", "cannot be opened: .*null")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no frame")
    refused(tmp_path / "empty", "empty' holds no pictures")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "pipe' is no regular file")


def test_a_damaged_frame_of_a_folder_is_named(tmp_path: Path) -> None:
    folder = frame_folder(drawn_video(3, 8, 8), tmp_path / "frames")
    (folder / "frame_1.png").write_bytes(b"no picture")
    refused(folder, "^frame 1 of .*frames': .*is not a picture in a format that is read")


@pytest.mark.parametrize(
    ("source", "pattern"),
    [
        (17, "cannot be made of a int"),
        (io.StringIO("text"), "is a text stream"),
    ],
)
def test_what_is_neither_file_nor_array(source: Any, pattern: str) -> None:
    refused(source, pattern)


def test_a_stream_that_cannot_seek_and_one_that_breaks() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    with open(reading, "rb") as pipe:
        refused(pipe, "cannot be read from its beginning.* give its bytes instead")
    closed = io.BytesIO(b"x")
    closed.close()
    refused(closed, "cannot be read from its beginning")


# --- damaged files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [("mp4", "mpeg4"), ("mov", "mpeg4"), ("avi", "mpeg4"), ("matroska", "mpeg4"), ("webm", "libvpx")]
)
def test_a_truncated_file_is_refused_wherever_it_ends(kind: tuple[str, str]) -> None:
    pytest.importorskip("av")
    data = small(*kind)
    assert len(Video(data, frames=2).tiles(8).frames) == 2
    for end in (40, len(data) // 2, len(data) - 2):
        refused(data[:end], "is truncated: it has .* bytes and lacks .* at its end|is not a video in a format")


def test_fragments_that_are_cut_off_are_missed() -> None:
    pytest.importorskip("av")
    data = small(container_options={"movflags": "frag_keyframe+empty_moov"})
    assert Video(data).tiles(8).num_frames == 30
    refused(data[: len(data) * 2 // 3], "is truncated")


def test_a_live_webm_which_does_not_know_its_end_is_read() -> None:
    pytest.importorskip("av")
    data = small("webm", "libvpx", container_options={"live": "1"})
    assert Video(data).tiles(8).num_frames == 30


def test_an_animation_that_is_truncated_is_refused() -> None:
    for file_format in ("GIF", "WEBP"):
        data = animation(drawn_video(9, 32, 24), file_format)
        for end in (40, len(data) // 2):
            refused(data[:end], "^the video (is truncated|cannot be decoded)")


def test_a_file_of_which_no_frame_can_be_decoded_is_refused() -> None:
    pytest.importorskip("av")
    data = small("mp4", "libx264")
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    refused(data[:start] + bytes(end - start) + data[end:], "^no frame of the video can be decoded")


def test_a_packet_that_shows_nothing_is_counted_out() -> None:
    """Then all frames are counted by decoding, and the choice is made among those."""
    av = pytest.importorskip("av")
    data = bytearray(small("webm", "libvpx", group=0))
    assert FileReader(io.BytesIO(bytes(data)), Budget("the video", 60)).num_frames == 30
    with av.open(io.BytesIO(data)) as file:
        packet = bytes([*file.demux(video=0)][14])
    data[data.index(packet)] &= ~0x10  # "show_frame" of its tag: RFC 6386 section 9.1
    seen = Video(bytes(data), frames=30).tiles(8)
    assert seen.num_frames == len(seen.frames) == 29
    assert seen.times_s == pytest.approx([number / 25 for number in range(30) if number != 14])


def test_a_frame_that_cannot_be_decoded_is_refused() -> None:
    pytest.importorskip("av")
    data = bytearray(small("mp4", "libx264", group=1))
    sizes = data.index(b"stsz") + 16
    offset = data.index(b"mdat") + 4 + sum(struct.unpack_from(">14I", data, sizes))
    (size,) = struct.unpack_from(">I", data, sizes + 4 * 14)
    data[offset + 4 : offset + size] = bytes(size - 4)
    refused(bytes(data), "^the video cannot be decoded: Invalid data", frames=30)


# --- too large, too long ----------------------------------------------------------------------------------------------


def test_frames_with_too_many_pixels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    limit = 64 * 48 - 1
    monkeypatch.setattr(container, "MAX_PIXELS", limit)
    refused(small(), "has frames of 64x48 pixels, too large to be decoded safely. Expected at most 3,071 pixels")


def test_the_codec_refuses_frames_that_grow_in_mid_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transport streams can be joined: the second part has larger frames than the first one said."""
    pytest.importorskip("av")
    joined = small("mpegts", "libx264") + video_file(drawn_video(30, 128, 96), "mpegts", "libx264", "yuv420p")
    monkeypatch.setattr(container, "MAX_PIXELS", 64 * 48)
    monkeypatch.setitem(container.OPTIONS, "max_pixels", str(64 * 48))
    refused(joined, "the video (has frames of 128x96 pixels, too large|cannot be decoded)", frames=60)


def test_the_bomb_limit_of_animations_holds() -> None:
    data = bytearray(animation(drawn_video(2, 16, 16), "GIF"))
    data[6:10] = struct.pack("<HH", 40_000, 40_000)
    refused(bytes(data), "^the video cannot be decoded: Image size|has frames of 40000x40000")


def test_a_stream_that_never_ends_stops_at_the_limit_of_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    endless = Endless(small("mpegts", "mpeg2video"))
    monkeypatch.setattr(Budget.__init__, "__defaults__", (500, *Budget.__init__.__defaults__[1:]))  # type: ignore[index]
    refused(endless, "has more than 500 frames, the most that are read. Cut it into parts")
    assert budget.MAX_PACKETS == 1_000_000


def test_a_stream_that_never_ends_stops_at_the_limit_of_time() -> None:
    pytest.importorskip("av")
    ticks = iter(range(10**9))
    spent = Budget("the video", 120, clock=lambda: next(ticks) / 2)
    message = refusal(lambda: FileReader(Endless(small("mpegts", "mpeg2video")), spent), VideoError)  # type: ignore[arg-type]
    assert_matches("^the video was not decoded within 120 seconds, the limit for a video", message)
    assert next(ticks) < 300


def test_time_is_counted_while_a_file_is_opened_decoded_and_recounted() -> None:
    """Whatever moment the time runs out at, that is what the message says."""
    pytest.importorskip("av")
    data = small("matroska", "mpeg4")

    def ticks_needed(limit: float) -> int:
        ticks = iter(range(10**9))
        reader = FileReader(io.BytesIO(data), Budget("the video", limit, clock=lambda: float(next(ticks))))
        reader.recount()
        assert len(list(reader.pictures((0, 29)))) == 2
        return next(ticks)

    needed = ticks_needed(10**6)
    for limit in range(0, needed - 2, 7):
        assert "not decoded within" in refusal(lambda limit=limit: ticks_needed(limit), VideoError)  # type: ignore[misc]


def test_animations_and_folders_are_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget.__init__, "__defaults__", (5, *Budget.__init__.__defaults__[1:]))  # type: ignore[index]
    frames = drawn_video(6, 8, 8)
    for source in (animation(frames, "GIF"), animation(frames, "WEBP"), frame_folder(frames, tmp_path / "frames")):
        refused(source, "has more than 5 frames")


class Endless:
    """A file that repeats a transport stream forever."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        assert size > 0, "nobody may read such a file to its end"
        start = self._position % len(self._data)
        part = self._data[start : start + size]
        self._position += len(part)
        return part

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + {0: 0, 1: self._position, 2: 2**60}[whence]
        return self._position

    def tell(self) -> int:
        return self._position


# --- the extra --------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_av(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "av"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "av", None)


@pytest.mark.usefixtures("without_av")
def test_a_video_file_without_its_extra_says_which(tmp_path: Path) -> None:
    message = refusal(lambda: Video(b"\0\0\0\x18ftypmp42" + bytes(12)).tiles(8), MissingExtraError, endings=("'",))
    assert_matches(
        r"^Reading a video file needs the extra 'video'. Install it with: .*pip install '(av>=15|\.\[video\])'", message
    )


@pytest.mark.usefixtures("without_av")
@pytest.mark.parametrize(
    "source",
    [
        lambda folder: drawn_video(3, 8, 8),
        lambda folder: animation(drawn_video(3, 8, 8), "GIF"),
        lambda folder: animation(drawn_video(3, 8, 8), "WEBP"),
        lambda folder: frame_folder(drawn_video(3, 8, 8), folder / "frames"),
    ],
)
def test_everything_else_needs_no_extra(source: Callable[[Path], Any], tmp_path: Path) -> None:
    assert np.shape(Video(source(tmp_path)).tiles(8).tiles) == (3, 8, 8, 3)
