"""A video that is a program for FFmpeg reads no file and opens no socket.

Opened by its path, or without our options, each of these does: a playlist reads another file of the machine, a session
description waits for packets at a port.
"""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("av", reason="PyAV, the extra `video`, is not installed")

import av

from tests.makers import forbidden_calls
from tests.makers.refusals import refusal
from tests.makers.videos import drawn_video, video_file
from varco_runtime import Video
from varco_runtime.errors import VideoError
from varco_runtime.video.container import FORMATS, OPTIONS

ROOT = Path(__file__).parents[3]
PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{path}\n#EXT-X-ENDLIST\n"
LIST = "ffconcat version 1.0\nfile '{path}'\n"
SESSION = (
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)
ATTACKS = {"m3u8": PLAYLIST, "ffconcat": LIST, "sdp": SESSION}
"""The trap needs no file to be there: it kills whoever tries to open one."""


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of somebody else's."""
    path = tmp_path_factory.mktemp("others") / "secret.ts"
    path.write_bytes(video_file(drawn_video(20, 64, 48), "mpegts", "mpeg2video", "yuv420p"))
    return path


def attempt(reader: str, data: bytes) -> subprocess.CompletedProcess[str]:
    """Read bytes as a video in a process that is killed if it opens anything."""
    command = [sys.executable, "-m", "tests.makers.forbidden_calls", reader]
    done = subprocess.run(command, input=data, capture_output=True, cwd=ROOT, check=False, timeout=120)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.skipif(not forbidden_calls.is_available(), reason="filters of system calls are Linux's, by processor")
@pytest.mark.parametrize("kind", ATTACKS)
def test_an_attack_opens_no_file_and_no_socket(kind: str, secret: Path) -> None:
    for path in (str(secret), secret.name, f"file://{secret}"):
        done = attempt("ours", ATTACKS[kind].format(path=path).encode())
        assert done.returncode == 0, done.stderr
        good, refused = done.stdout.splitlines()
        assert good == "4 frames", "and a good file opens nothing either"
        assert refused.startswith("the video is not a video in a format that is read")


@pytest.mark.skipif(not forbidden_calls.is_available(), reason="filters of system calls are Linux's, by processor")
@pytest.mark.parametrize("data", [SESSION, LIST.format(path="secret.ts")])
def test_the_trap_catches_what_attacks_do_without_our_options(data: str) -> None:
    done = attempt("plain", data.encode())
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGSYS, "", "")


@pytest.mark.parametrize("kind", ATTACKS)
@pytest.mark.parametrize("name", ["clip.mp4", "clip.{kind}"])
def test_an_attack_is_refused_whatever_its_file_is_called(kind: str, name: str, secret: Path, tmp_path: Path) -> None:
    path = tmp_path / name.format(kind=kind)
    path.write_text(ATTACKS[kind].format(path=secret))
    with open(path, "rb") as file:
        for source in (path, path.read_bytes(), file):
            message = refusal(functools.partial(Video(source).tiles, 8), VideoError)
            assert "is not a video in a format that is read" in message


def test_a_playlist_opened_by_its_path_does_read_another_file(secret: Path) -> None:
    """Why FFmpeg never gets a path: this is no defence against nothing."""
    path = secret.with_suffix(".m3u8")
    path.write_text(PLAYLIST.format(path=secret.name))
    with av.open(str(path)) as opened:
        assert sum(1 for _ in opened.decode(video=0)) == 20


def test_ffmpeg_gets_no_path_no_name_no_protocol_and_only_formats_that_hold_their_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[object, dict[str, object]]] = []

    def recorded(file: object, **options: object) -> object:
        given.append((file, options))
        return original(file, **options)

    path = tmp_path / "clip.m3u8"
    path.write_bytes(video_file(drawn_video(3, 64, 48), "mp4", "mpeg4", "yuv420p"))
    original = av.open
    monkeypatch.setattr(av, "open", recorded)
    assert len(Video(path).tiles(8).frames) == 3
    assert len(given) == 2, "one for the times, one for the frames"
    for file, options in given:
        assert not hasattr(file, "name")
        assert options["options"] == OPTIONS
    assert (OPTIONS["protocol_whitelist"], OPTIONS["max_pixels"]) == ("", "89478485")
    assert FORMATS == "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,gif"
