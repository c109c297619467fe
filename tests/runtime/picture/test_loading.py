"""Pictures from anywhere become upright RGB, or one clear line."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from tests.makers.picture_files import encoded
from varco_runtime.errors import ImageError
from varco_runtime.picture import loading as picture
from varco_runtime.picture.loading import load_picture

RGB = np.random.default_rng(0).integers(0, 256, (23, 37, 3), dtype=np.uint8)
PLAIN_MODES = ["1", "L", "P", "PA", "LA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"]


def grey(values: Any, dtype: str) -> list[int]:
    """What a one-row grey picture of these values becomes, asserted to be grey."""
    rgb = load_picture(Image.fromarray(np.array([values], dtype))).rgb()
    assert (rgb == rgb[..., :1]).all()
    return [int(value) for value in rgb[0, :, 0]]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels: whoever decodes it fails, whoever checks first says "too large"."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def error_of(source: Any) -> str:
    """The message of the `ImageError` that loading raises: one line, of four parts, without Pillow's own traceback."""
    with pytest.raises(ImageError) as caught:
        load_picture(source)
    message = str(caught.value)
    assert "\n" not in message, message
    assert len(message) < 400, message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


# --- what is accepted ------------------------------------------------------------------------------------------------


def test_every_kind_of_source_gives_the_same_picture(tmp_path: Path) -> None:
    class ShortReads(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(100, size if size is not None and size >= 0 else 100))

    data = encoded(Image.fromarray(RGB))
    path = tmp_path / "그림.png"
    path.write_bytes(data)
    sources = [str(path), path, data, bytearray(data), memoryview(data), io.BytesIO(data), ShortReads(data)]
    sources += [path.open("rb"), Image.open(path), Image.fromarray(RGB), RGB, load_picture(RGB)]
    pictures = [load_picture(source) for source in sources]
    for source in sources:
        if hasattr(source, "close"):
            source.close()
    assert {p.digest for p in pictures} == {pictures[0].digest}
    assert all((p.rgb() == RGB).all() for p in pictures)
    assert pictures[0].size_hw == (pictures[0].height, pictures[0].width) == (23, 37)


def test_the_digest_tells_pixels_and_sizes_apart() -> None:
    changed = RGB.copy()
    changed[-1, -1, -1] ^= 1
    reshaped = RGB.reshape(37, 23, 3)
    assert len({load_picture(array).digest for array in (RGB, changed, reshaped)}) == 3


def test_a_picture_does_not_share_memory_with_its_source() -> None:
    image, array = Image.fromarray(RGB), RGB.copy()
    from_image, from_array = load_picture(image), load_picture(array)
    image.paste((1, 2, 3), (0, 0, 37, 23))
    array[:] = 0
    assert (from_image.rgb() == RGB).all()
    assert (from_array.rgb() == RGB).all()


@pytest.mark.parametrize("mode", PLAIN_MODES)
def test_a_plain_mode_converts_as_pillow_does(mode: str) -> None:
    image = Image.fromarray(RGB)
    if mode == "RGBa":
        image = image.convert("RGBA")
    image = Image.merge("PA", (image.convert("P"), image.convert("L"))) if mode == "PA" else image.convert(mode)
    assert image.mode == mode
    assert (load_picture(image).rgb() == np.array(image.convert("RGB"))).all()


def test_alpha_is_dropped_and_not_blended() -> None:
    image = Image.fromarray(np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)]), "RGBA")
    assert (load_picture(encoded(image)).rgb() == RGB).all()


def test_premultiplied_grey_converts_although_pillow_has_no_direct_way() -> None:
    image = Image.new("LA", (2, 1), (200, 255)).convert("La")
    assert (load_picture(image).rgb() == 200).all()


def test_a_transparent_palette_converts_without_a_warning() -> None:
    image = Image.fromarray(RGB).convert("P")
    image.info["transparency"] = bytes(range(256))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_picture(image)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bit_grey_keeps_its_upper_byte(dtype: str) -> None:
    assert grey([0, 255, 256, 128 * 257, 65535], dtype) == [0, 0, 1, 128, 255]


def test_the_same_16_bit_picture_is_the_same_from_png_tiff_and_pillow() -> None:
    values = np.random.default_rng(1).integers(0, 65536, (9, 7), dtype=np.uint16)
    image = Image.fromarray(values)
    pictures = [load_picture(source) for source in (encoded(image), encoded(image, "TIFF"), image)]
    assert {p.digest for p in pictures} == {pictures[0].digest}
    assert (pictures[0].rgb()[..., 0] == values >> 8).all()


def test_wide_grey_is_scaled_by_its_range_instead_of_clipped_to_white() -> None:
    assert grey([0, 100, 255], "<i4") == [0, 100, 255]
    assert grey([0, 256, 65535], "<i4") == [0, 1, 255]
    assert grey([-1000, 0, 1000], "<i4") == [0, 128, 255]
    assert grey([0, 1 << 30], "<i4") == [0, 255]
    assert grey([5, 5], "<i4") == [5, 5]
    assert grey([-5, -5], "<i4") == [0, 0]
    assert grey([0.0, 0.5, 1.0], "<f4") == [0, 128, 255]
    assert grey([0.0, 100.7, 255.0], "<f4") == [0, 100, 255]
    assert grey([-3e38, 0.0, 3e38], "<f4") == [0, 128, 255]


def test_floats_that_are_not_numbers_count_as_the_ends_of_the_range() -> None:
    assert grey([np.nan, 0.25, np.inf, 1.0, -np.inf], "<f4") == [64, 64, 255, 255, 64]
    assert grey([np.nan, np.inf], "<f4") == [0, 0]
    signaling = np.array([[0x7FA00000, 0x3F800000]], "<u4").view("<f4")
    assert load_picture(Image.fromarray(signaling)).rgb()[0, :, 0].tolist() == [255, 255]


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(RGB), file_format, exif=exif)
    with Image.open(data if isinstance(data, str) else io.BytesIO(data)) as image:
        image.load()
        expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    loaded = load_picture(data)
    assert loaded.size_hw == ((23, 37) if orientation < 5 else (37, 23))
    assert (loaded.rgb() == expected).all()


def test_a_damaged_exif_block_means_upright() -> None:
    data = encoded(Image.fromarray(RGB), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert (load_picture(data).rgb() == RGB).all()


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(file_format: str) -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert (load_picture(data).rgb() == (255, 0, 0)).all()


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_missing_file_is_named() -> None:
    assert "'no such\\nfile.png' cannot be opened: No such file" in error_of("no such\nfile.png")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "is a folder" in error_of(tmp_path)


def test_a_path_with_a_null_character_is_refused() -> None:
    assert "null" in error_of("a\0b.png")


def test_a_file_without_permission_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, mode: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(picture, "open", refuse, raising=False)
    assert "'secret.png' cannot be opened: Permission denied" in error_of("secret.png")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    assert "is empty (0 bytes)" in error_of(tmp_path / "empty.png")
    assert "is empty (0 bytes)" in error_of(b"")
    assert "is empty (0 bytes)" in error_of(io.BytesIO())


def test_what_is_no_picture_is_refused() -> None:
    assert "not a picture in a format that is read: it begins with b'hello, w'" in error_of(b"hello, world" * 10)


def test_a_text_stream_is_refused() -> None:
    assert "sys.stdin.buffer" in error_of(io.StringIO("hello"))


def test_a_stream_that_fails_is_refused() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise ConnectionResetError("peer\nleft")

    assert "cannot be read: peer left (ConnectionResetError)" in error_of(Broken())


def test_an_object_that_is_no_source_is_refused() -> None:
    assert "cannot be made of a int" in error_of(7)


@pytest.mark.parametrize(
    "array", [RGB.astype(np.float32), RGB[..., 0], np.dstack([RGB, RGB]), RGB[None]], ids=["float", "2d", "6", "4d"]
)
def test_an_array_of_another_shape_or_type_is_refused(array: Any) -> None:
    assert "Expected uint8 [height, width, 3]" in error_of(array)


def test_a_picture_without_pixels_is_refused() -> None:
    assert "5x0 pixels. Expected at least 1x1" in error_of(np.zeros((0, 5, 3), np.uint8))
    assert "0x5 pixels. Expected at least 1x1" in error_of(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize(("width", "height"), [(9_500, 9_500), (50_000, 50_000), (2**31 - 1, 2**31 - 1)])
def test_the_pixel_cap_is_checked_before_decoding(width: int, height: int) -> None:
    assert f"has {width * height:,} pixels, too large to be opened safely" in error_of(png_header(width, height))


def test_the_pixel_cap_holds_where_pillow_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert "has 9500x9500 pixels, too large" in error_of(png_header(9_500, 9_500))


def test_a_hair_longer_than_the_longest_side_is_refused() -> None:
    assert "has 1x1000001 pixels, too large" in error_of(png_header(1, 1_000_001))


def test_a_file_over_the_size_cap_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MAX_FILE_BYTES", 1000)
    (tmp_path / "big.bin").write_bytes(bytes(1001))
    for source in (tmp_path / "big.bin", bytes(1001), io.BytesIO(bytes(5000))):
        assert "has more than 1,000 bytes" in error_of(source)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
def test_an_endless_device_is_read_only_up_to_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MAX_FILE_BYTES", 1000)
    assert "'/dev/zero' has more than 1,000 bytes" in error_of("/dev/zero")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF"])
def test_a_truncated_picture_is_refused(file_format: str) -> None:
    data = encoded(Image.fromarray(RGB), file_format)
    assert "cannot be decoded" in error_of(data[: len(data) * 2 // 3])


def test_eps_is_refused_because_it_would_run_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: object, **options: object) -> None:
        raise AssertionError("a program was run")

    monkeypatch.setattr(subprocess, "Popen", run)
    data = encoded(Image.fromarray(RGB), "EPS")
    assert "not a picture in a format that is read" in error_of(data)
    assert "is EPS, which runs Ghostscript" in error_of(Image.open(io.BytesIO(data)))


def test_iptc_is_refused_because_it_may_wrap_an_eps() -> None:
    def tag(record: int, dataset: int, body: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, dataset, len(body)) + body

    eps = encoded(Image.fromarray(RGB), "EPS")
    data = tag(3, 20, b"\x25") + tag(3, 30, b"\x17") + tag(3, 60, b"\x01\x00") + tag(3, 120, b"\x05") + tag(8, 10, eps)
    assert "not a picture in a format that is read" in error_of(data)
    assert "is IPTC, which may wrap a file of any format" in error_of(Image.open(io.BytesIO(data)))


def test_libtiff_and_pillow_print_nothing_about_a_damaged_file() -> None:
    image = Image.fromarray(RGB)
    data = bytearray(encoded(image, "TIFF", compression="tiff_deflate"))
    data[20:60] = bytes(40)
    code = (
        "import sys; from varco_runtime.picture.loading import load_picture\n"
        "from varco_runtime.errors import ImageError\n"
        "try: load_picture(sys.stdin.buffer)\n"
        "except ImageError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=bytes(data), capture_output=True, timeout=600)
    assert done.returncode == 0
    assert done.stdout.count(b"\n") == 1
    assert b"cannot be decoded" in done.stdout
    assert done.stderr == b""


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    before = list(warnings.filters)
    data = encoded(Image.fromarray(RGB).resize((300, 300)))
    threads = [threading.Thread(target=lambda: [load_picture(data) for _ in range(5)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


# --- mutated files ---------------------------------------------------------------------------------------------------


def seeds() -> list[bytes]:
    """Small valid files in the formats that people send, and a few that they do not."""
    image, exif = Image.fromarray(RGB), Image.Exif()
    exif[0x0112] = 6
    files = [encoded(image, name, exif=exif) for name in ("PNG", "JPEG", "TIFF", "WEBP")]
    files += [encoded(image, name) for name in ("GIF", "BMP", "ICO", "EPS")]
    files += [encoded(image, "JPEG2000")] if features.check("jpg_2000") else []
    files += [encoded(image, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "packbits")]
    files += [encoded(image.convert("CMYK"), "JPEG"), encoded(image, "JPEG", progressive=True)]
    files += [encoded(Image.fromarray(RGB[..., 0].astype(np.uint16) * 200)), encoded(image.convert("LAB"), "TIFF")]
    files += [encoded(image, name, save_all=True, append_images=[image]) for name in ("GIF", "PNG", "WEBP", "MPO")]
    return files


def mutants(count: int, seed: int) -> Iterator[bytes]:
    rng, files = random.Random(seed), seeds()
    for number in range(count):
        data = bytearray(files[number % len(files)])
        for _ in range(rng.choice([1, 1, 2, 4, 16])):
            at = rng.randrange(min(len(data), rng.choice([16, 64, 400, 1 << 30])))
            match rng.randrange(6):
                case 0:
                    del data[max(at, 4) :]
                case 1:
                    data[at:at] = rng.randbytes(rng.randrange(1, 9))
                case 2 if len(data) > 16:
                    del data[at : at + rng.randrange(1, 9)]
                case _:
                    data[at] = rng.choice([0, 127, 128, 255, rng.randrange(256)])
        yield bytes(data)


def assert_mutants_load_or_are_refused(count: int, seed: int) -> None:
    refusals = []
    for data in mutants(count, seed):
        try:
            load_picture(data)
        except ImageError as error:
            refusals.append(str(error))
    assert not any("\n" in message for message in refusals)
    assert count // 20 < len(refusals) < count - count // 20  # both ways are taken


def test_mutated_files_load_or_are_refused_in_one_line() -> None:
    assert_mutants_load_or_are_refused(500, seed=0)


@pytest.mark.full
def test_ten_thousand_mutated_files_load_or_are_refused_in_one_line() -> None:
    assert_mutants_load_or_are_refused(10_000, seed=1)
