"""`varco run` about several pictures and videos: how they are named, what is refused, and what the answer says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.conftest import Captured, fail, run
from tests.makers.inputs import noise_picture
from tests.makers.media import drawn_frame
from varco_runtime import Varco, Video


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a.png`, `b.png`, a folder `frames` of five, and the animation `moving.gif` of three."""
    folder = tmp_path_factory.mktemp("files")
    for seed, name in enumerate("ab"):
        noise_picture(seed).save(folder / f"{name}.png")
    (folder / "frames").mkdir()
    frames = [Image.fromarray(drawn_frame(number, 64, 48)) for number in range(5)]
    for number, frame in enumerate(frames):
        frame.save(folder / "frames" / f"{number}.png")
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:3], duration=500)
    return folder


@pytest.fixture(scope="module")
def varco(media_bundle: Path) -> Varco:
    return Varco.load(media_bundle, threads=1)


def document(capsys: Captured, *arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(capsys, "run", *arguments, "--json", "--max-new-tokens", "8")[0])
    return found


def test_pictures_named_by_options_leave_the_prompt_as_the_argument(
    varco: Varco, media_bundle: Path, files: Path, capsys: Captured
) -> None:
    a, b = files / "a.png", files / "b.png"
    got = document(capsys, media_bundle, "--image", a, "--image", b, "Compare.")
    assert tuple(got["token_ids"]) == varco.ask([a, b], "Compare.", max_new_tokens=8).token_ids
    size = {"width": 130, "height": 90}
    assert got["media"] == [{"kind": "image", "size": size, "tiles": 1, "tokens": 17}] * 2
    assert got["picture"] is None
    assert got["usage"]["image_tokens"] == 34


@pytest.mark.parametrize(("tiling", "tiles"), [("auto", [1, 1]), ("one", [1, 1])])
def test_the_tiling_is_as_asked(
    tiling: str, tiles: list[int], media_bundle: Path, files: Path, capsys: Captured
) -> None:
    a, b = files / "a.png", files / "b.png"
    got = document(capsys, media_bundle, "--image", a, "--image", b, "Compare.", "--tiling", tiling)
    assert [one["tiles"] for one in got["media"]] == tiles


def test_one_picture_by_an_option_is_one_picture(media_bundle: Path, files: Path, capsys: Captured) -> None:
    by_option = document(capsys, media_bundle, "--image", files / "a.png", "What?")
    by_argument = document(capsys, media_bundle, files / "a.png", "What?")
    assert by_option["token_ids"] == by_argument["token_ids"]
    assert by_option["media"][0]["tiles"] > 1
    assert document(capsys, media_bundle, files / "a.png", "What?", "--tiling", "one")["media"][0]["tiles"] == 1


def test_a_video_is_a_folder_of_frames(varco: Varco, media_bundle: Path, files: Path, capsys: Captured) -> None:
    got = document(capsys, media_bundle, "--video", files / "frames", "What happens?", "--frames", "3")
    answer = varco.ask(Video(files / "frames", frames=3), "What happens?", max_new_tokens=8)
    assert tuple(got["token_ids"]) == answer.token_ids
    size = {"width": 64, "height": 48}
    video = {"kind": "video", "size": size, "tiles": 3, "tokens": 13, "frames": [0, 2, 4], "times_s": None}
    assert got["media"] == [video]


def test_an_animation_is_a_video_or_its_first_frame_with_a_note(
    media_bundle: Path, files: Path, capsys: Captured
) -> None:
    got = document(capsys, media_bundle, "--video", files / "moving.gif", "What happens?")
    assert (got["media"][0]["frames"], got["media"][0]["times_s"]) == ([0, 1, 2], [0.0, 0.5, 1.0])
    _, err = run(capsys, "run", media_bundle, files / "moving.gif", "What?", "--max-new-tokens", "2")
    assert "note: The picture is an animation, of which the first frame was looked at" in err
    _, err = run(capsys, "run", media_bundle, files / "a.png", "What?", "--max-new-tokens", "2")
    assert "animation" not in err


def test_a_picture_and_a_video_go_together(media_bundle: Path, files: Path, capsys: Captured) -> None:
    got = document(capsys, media_bundle, "--image", files / "a.png", "--video", files / "frames", "Compare.")
    assert [one["kind"] for one in got["media"]] == ["image", "video"]
    assert got["picture"] == {"width": 130, "height": 90}  # the one picture, which keeps its grid
    assert got["media"][0]["tiles"] > 1


WRONG_USAGE = {
    "With --image the one argument behind BUNDLE is the prompt, got two": ("a.png", "Q", "--image", "b.png"),
    "With --video the one argument behind BUNDLE is the prompt, got two": ("a.png", "Q", "--video", "frames"),
    "--no-image asks without a picture, got --image as well": ("--no-image", "Q", "--image", "a.png"),
    "--frames says how a video is looked at, got none": ("a.png", "Q", "--frames", "3"),
    "--fps says how a video is looked at, got none": ("a.png", "Q", "--fps", "1"),
    "No prompt was given. Expected: varco run BUNDLE --image FILE": ("--image", "a.png", "--image", "b.png"),
    "--save paints on the picture, got 2 pictures": ("--image", "a.png", "--image", "b.png", "Q", "--save", "o.png"),
    "--format hocr places regions on a picture, got a video": ("--video", "frames", "Q", "--format", "hocr"),
    "tiling='both' is unknown": ("a.png", "Q", "--tiling", "both"),
}


@pytest.mark.parametrize("message", WRONG_USAGE)
def test_wrong_usage_is_one_line(message: str, media_bundle: Path, files: Path, capsys: Captured) -> None:
    arguments = [files / part if (files / part).exists() else part for part in WRONG_USAGE[message]]
    assert message in fail(capsys, 2, "run", media_bundle, *arguments)


def test_no_frame_is_refused(media_bundle: Path, files: Path, capsys: Captured) -> None:
    line = fail(capsys, 1, "run", media_bundle, "--video", files / "frames", "Q", "--frames", "0")
    assert "asked for 0 frames" in line


def test_a_bundle_for_one_picture_says_so(tiny_bundle: Path, files: Path, capsys: Captured) -> None:
    two = ("--image", files / "a.png", "--image", files / "b.png", "Compare.")
    line = fail(capsys, 1, "run", tiny_bundle, *two)
    assert "The conversation shows 2 pictures, this model was trained with 1 picture at a time" in line
    out, _ = run(capsys, "run", tiny_bundle, *two, "--untrained", "--max-new-tokens", "2")
    assert out
    line = fail(capsys, 1, "run", tiny_bundle, "--video", files / "frames", "Q", "--untrained")
    assert "This bundle takes no video: its tokenizer has no id for <video>" in line
