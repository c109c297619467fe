"""A video costs the memory of its tiles: a frame is scaled when it is decoded, and dropped."""

from __future__ import annotations

import subprocess
import sys
import weakref
from pathlib import Path

import pytest

pytest.importorskip("av", reason="PyAV, the extra `video`, is not installed")

from tests.makers.videos import Frames, drawn_video, video_file
from varco_runtime import Video
from varco_runtime.video import decoding

ROOT = Path(__file__).parents[3]
UNEXPLAINED_BYTES = 10 << 20
"""Measured beyond the tiles and two frames, whatever the video's length: 6 to 8 MB. Where it goes is not known."""
FRAMES, EDGE, WIDTH, HEIGHT = 32, 384, 1920, 1080

CHILD = """
import sys
from varco_runtime import Video
from varco_runtime.video import decoding
from varco_runtime.video.budget import Budget
way, path, small, frames, edge = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
Video(small, frames=1).tiles(8)  # Pillow, the scaler and their tables are there before the counting begins
if way == "drop":
    with open(path, "rb") as file, decoding.opened(file, Budget(path, 600)) as (container, stream):
        for frame in container.decode(stream):
            pass
elif way == "keep":
    kept, upright = [], decoding.upright
    decoding.upright = lambda frame: (kept.append(upright(frame)), kept[-1])[1]
if way != "drop":
    Video(path, frames=frames, decode_limit_s=600).tiles(edge)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_one_frame_is_alive_while_the_next_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = video_file(drawn_video(40, 64, 48), "mp4", "mpeg4", "yuv420p")

    def most_alive(keep: list[Frames] | None) -> int:
        alive: list[weakref.ref[Frames]] = []
        counts = []

        def counted(frame: object) -> Frames:
            image = original(frame)
            alive.append(weakref.ref(image))
            counts.append(sum(1 for one in alive if one() is not None))
            if keep is not None:
                keep.append(image)
            return image

        monkeypatch.setattr(decoding, "upright", counted)
        Video(data, frames=20).tiles(16)
        return max(counts)

    original = decoding.upright
    assert most_alive(None) <= 2
    assert most_alive([]) == 20, "what a reader that keeps its frames would show"


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's largest size stands in Linux's /proc")
def test_a_long_video_costs_about_its_tiles_and_two_frames_more_than_decoding_it(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    few = drawn_video(20, WIDTH, HEIGHT)
    path.write_bytes(video_file([few[number % 20] for number in range(1000)], "mp4", "mpeg4", "yuv420p"))

    small = tmp_path / "small.mp4"
    small.write_bytes(video_file(few[:2], "mp4", "mpeg4", "yuv420p"))

    def peak_bytes(way: str) -> int:
        command = [sys.executable, "-c", CHILD, way, str(path), str(small), str(FRAMES), str(EDGE)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        return int(done.stdout) * 1024

    dropped = peak_bytes("drop")
    allowed = FRAMES * EDGE * EDGE * 3 + 2 * WIDTH * HEIGHT * 3
    grown, kept = peak_bytes("read") - dropped, peak_bytes("keep") - dropped
    print(f"{grown / 1e6:.1f} MB of {allowed / 1e6:.1f} MB; a reader that keeps its frames {kept / 1e6:.1f} MB")
    assert kept > 3 * allowed, "the control: what a reader that keeps its frames shows"
    assert grown <= allowed + UNEXPLAINED_BYTES
