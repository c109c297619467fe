"""The picture process says of a file what `load_picture` says of it, or refuses it in one line for a stranger."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from benchmarks.robust.mutations import originals
from benchmarks.robust.picture_process import PictureProcess, difference, mutated_in_process
from tests.makers.picture_files import encoded, png_chunk
from varco_serve import wire
from varco_serve.pictures.formats import ACCEPTED, format_name

RGB = Image.fromarray(np.random.default_rng(5).integers(0, 256, (23, 37, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def process() -> Iterator[PictureProcess]:
    with PictureProcess() as process:
        yield process
        assert process.end() == (0, "")


@pytest.fixture
def disposable() -> Iterator[PictureProcess]:
    with PictureProcess() as process:
        yield process


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_that_says(width: int, height: int) -> bytes:
    """A PNG of one pixel whose header says another size."""
    data = encoded(Image.new("RGB", (1, 1)))
    header = png_chunk(b"IHDR", struct.pack(">II", width, height) + data[24:29])
    return data[:8] + header + data[33:]


def test_every_format_mode_and_size_is_answered_as_load_picture_does(process: PictureProcess) -> None:
    accepted = [(name, data) for name, data in originals(7) if format_name(data) in ACCEPTED]
    assert {format_name(data) for _, data in accepted} == set(ACCEPTED)
    assert {name: difference(process, data) for name, data in accepted} == dict.fromkeys(dict(accepted))
    assert {process.ask(data)[0].get("error") for _, data in accepted} == {None}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("key", ["JPEG", "PNG", "WEBP"])
def test_a_picture_comes_upright(process: PictureProcess, key: str, orientation: int) -> None:
    data = encoded(RGB, key, exif=turned(orientation))
    assert difference(process, data) is None
    header, _ = process.ask(data)
    assert (header["width"], header["height"]) == ((37, 23) if orientation < 5 else (23, 37))


def test_an_animation_says_so(process: PictureProcess) -> None:
    more = {"save_all": True, "append_images": [RGB.rotate(90)]}
    for key in ("GIF", "PNG", "WEBP"):
        assert process.ask(encoded(RGB, key, **more))[0]["is_animated"] is True
        assert process.ask(encoded(RGB, key))[0]["is_animated"] is False


def test_damaged_exif_means_upright(process: PictureProcess) -> None:
    data = encoded(RGB, "JPEG", exif=turned(6))
    at = data.index(b"Exif\0\0")
    damaged = data[: at + 6] + b"\xff" * 12 + data[at + 18 :]
    header, _ = process.ask(damaged)
    assert (header["width"], header["height"]) == (37, 23)
    assert difference(process, damaged) is None


@pytest.mark.parametrize("key", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_file_that_is_cut_off_is_refused_without_a_class_or_a_path(process: PictureProcess, key: str) -> None:
    data = encoded(RGB, key)
    header, body = process.ask(data[: len(data) * 2 // 3])
    name = format_name(data)
    assert body == b""
    assert header["code"] == "image_parse_error"
    assert header["error"] == f"The {name} is damaged or cut off. Expected a complete file; save it again."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png_that_says(60_000, 60_000), "The picture has 3,600,000,000 pixels, too large to be opened safely."),
        (png_that_says(1_000_001, 1), "The picture has 1000001x1 pixels, too large to be opened safely."),
        (
            encoded(RGB)[:33] + png_chunk(b"tEXt", b"a\0b") * 300,
            "The picture is a PNG with 257 chunks beside those of pixels, expected at most 256.",
        ),
    ],
)
def test_a_bomb_is_refused_by_what_it_says(process: PictureProcess, data: bytes, message: str) -> None:
    header, _ = process.ask(data)
    assert header["error"].startswith(message)
    assert header["code"] == "image_too_large"


def test_a_header_that_lies_within_the_limit_costs_no_process(process: PictureProcess) -> None:
    header, _ = process.ask(png_that_says(9000, 9000))
    assert header["error"] == "The PNG is damaged or cut off. Expected a complete file; save it again."
    assert difference(process, encoded(RGB)) is None


def test_mutated_files_end_as_load_picture_says() -> None:
    assert mutated_in_process(seed=11, count=400)["faults"] == []


@pytest.mark.full
@pytest.mark.parametrize("seed", range(12, 16))
def test_many_mutated_files_end_as_load_picture_says(seed: int) -> None:
    assert mutated_in_process(seed, count=2500)["faults"] == []


def test_the_process_ends_when_the_socket_closes(disposable: PictureProcess) -> None:
    assert difference(disposable, encoded(RGB)) is None
    assert disposable.end() == (0, "")


def test_what_is_no_frame_ends_it_and_nothing_is_printed(disposable: PictureProcess) -> None:
    disposable.connection.sendall(b"\xff" * 64)
    assert disposable.process.wait(60) == 0
    with pytest.raises(wire.WireError):
        disposable.ask(b"")


def test_a_request_without_a_number_ends_it_with_a_line_for_the_log(disposable: PictureProcess) -> None:
    wire.send(disposable.connection, {}, b"")
    assert disposable.process.wait(60) == 1
    assert disposable.end()[1] == "varco: the picture process ends: KeyError: 'id'\n"
