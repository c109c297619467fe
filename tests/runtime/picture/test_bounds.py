"""Small files that cost much are refused before Pillow sees them; what cameras and editors write is not."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.makers.picture_files import encoded, png_chunk
from varco_runtime.errors import ImageError
from varco_runtime.picture import bounds as bounds
from varco_runtime.picture import jpeg2000
from varco_runtime.picture import loading as picture
from varco_runtime.picture.loading import load_picture

RGB = np.random.default_rng(0).integers(0, 256, (23, 37, 3), dtype=np.uint8)


def tiff(
    tags: dict[int, tuple[str, list[int]]], pixels: bytes = b"", order: str = "<", big: bool = False, num_tags: int = 0
) -> bytes:
    """A TIFF of these tags, each a `struct` letter and its values; `pixels` stand at the end, where -1 points to."""
    kinds = {"B": 1, "H": 3, "I": 4, "Q": 16}
    inline, entry_bytes, offset_letter = (8, 20, "Q") if big else (4, 12, "I")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head += struct.pack(order + "HHQ", 8, 0, 16) if big else struct.pack(order + "I", 8)
    first = len(head) + (8 if big else 2)
    end = first + len(tags) * entry_bytes + inline
    values = {tag: list(numbers) for tag, (_, numbers) in tags.items()}
    outside = {tag: struct.calcsize(letter) * len(numbers) for tag, (letter, numbers) in tags.items()}
    pixels_at = end + sum(size for size in outside.values() if size > inline)
    entries, data = b"", b""
    for tag, (letter, _) in sorted(tags.items()):
        body = struct.pack(f"{order}{len(values[tag])}{letter}", *(pixels_at if v == -1 else v for v in values[tag]))
        entries += struct.pack(order + ("HHQ" if big else "HHI"), tag, kinds[letter], len(values[tag]))
        entries += (
            body.ljust(inline, b"\0") if len(body) <= inline else struct.pack(order + offset_letter, end + len(data))
        )
        data += body if len(body) > inline else b""
    count = struct.pack(order + ("Q" if big else "H"), num_tags or len(tags))
    return head + count + entries + bytes(inline) + data + pixels


def grey_tiff(
    width: int, height: int, bits: int, photometric: int, pixels: bytes, order: str = "<", **more: Any
) -> bytes:
    tags = {256: ("I", [width]), 257: ("I", [height]), 258: ("H", [bits]), 259: ("H", [1]), 262: ("H", [photometric])}
    tags |= {273: ("I", [-1]), 277: ("H", [1]), 278: ("I", [height]), 279: ("I", [len(pixels)])}
    return tiff(tags | more.get("tags", {}), pixels, order)


# --- grey pictures of more than 8 bits --------------------------------------------------------------------------------


def shades(data: bytes) -> list[int]:
    rgb = load_picture(data).rgb()
    assert (rgb == rgb[..., :1]).all()
    return [int(value) for value in rgb[0, :, 0]]


def test_12_bits_of_a_tiff_are_scaled_by_what_it_says() -> None:
    packed = bytes.fromhex("000 7ff 800 fff".replace(" ", ""))
    assert shades(grey_tiff(4, 1, 12, 1, packed)) == [0, 127, 128, 255]


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_of_a_tiff_keep_their_upper_byte(order: str) -> None:
    pixels = struct.pack(order + "4H", 0, 0x0FFF, 0x8000, 0xFFFF)
    assert shades(grey_tiff(4, 1, 16, 1, pixels, order)) == [0, 15, 128, 255]


def test_where_white_is_zero_16_bits_and_floats_are_inverted_too() -> None:
    assert shades(grey_tiff(4, 1, 16, 0, struct.pack("<4H", 0, 0x0FFF, 0x8000, 0xFFFF))) == [255, 240, 127, 0]
    floats = grey_tiff(3, 1, 32, 0, struct.pack("<3f", 0, 0.25, 1), tags={339: ("H", [3])})
    assert shades(floats) == [255, 191, 0]
    assert shades(grey_tiff(2, 1, 8, 0, b"\x00\xff")) == [255, 0]


def test_jpeg_2000_of_12_bits_is_as_bright_as_of_16() -> None:
    """Pillow scales what a JPEG 2000 holds to 16 bits; the shift of the DC level alone tells 12 from 16 bits here."""
    if "jpg_2000" not in picture_features():
        pytest.skip("Pillow has no JPEG 2000")
    data = encoded(Image.fromarray(np.array([[0x8000, 0x8400, 0x7C00]], np.uint16)), "JPEG2000", no_jp2=True)
    depth = data.index(b"\xff\x51") + 40  # Ssiz of the only component
    assert data[depth] == 15
    assert shades(data) == [128, 132, 124]
    assert shades(data[:depth] + b"\x0b" + data[depth + 1 :]) == [128, 192, 64]


def picture_features() -> list[str]:
    from PIL import features

    return [name for name in ("jpg_2000", "webp") if features.check(name)]


# --- what is refused --------------------------------------------------------------------------------------------------


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg(*more: bytes, size: tuple[int, int] = (37, 23)) -> bytes:
    """A progressive JPEG with `more` behind its first two bytes."""
    data = encoded(Image.fromarray(RGB), "JPEG", progressive=True)
    at = data.index(b"\xff\xc2") + 5
    data = data[:at] + struct.pack(">HH", size[1], size[0]) + data[at + 4 :]
    return data[:2] + b"".join(more) + data[2:]


def jpeg_of_scans(count: int, size: tuple[int, int] = (37, 23)) -> bytes:
    data = jpeg(size=size)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * (count - data.count(b"\xff\xda") + 1) + data[-2:]


def png(*more: bytes) -> bytes:
    data = encoded(Image.fromarray(RGB), "PNG")
    return data[:33] + b"".join(more) + data[33:]


def gif(extension: bytes) -> bytes:
    data = encoded(Image.fromarray(RGB).convert("P"), "GIF")
    at = 13 + (3 << (data[10] & 7) + 1)
    return data[:at] + extension + data[at:]


def bmp_run_length(width: int, height: int) -> bytes:
    """8 bits, run-length coded: ends of lines, each of which Pillow fills pixel by pixel."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + info + bytes(1024) + b"\x00\x00" * 150


def webp_canvas(width: int, height: int) -> bytes:
    body = (
        struct.pack("<4sIB3x", b"VP8X", 10, 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_frame(kind: bytes, width: int, height: int) -> bytes:
    head = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14)
    if kind == b"VP8 ":
        head = b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height)
    return b"RIFF" + struct.pack("<I", 20 + len(head)) + b"WEBP" + kind + struct.pack("<I", len(head)) + head.ljust(20)


def jpeg_2000(
    size: tuple[int, int],
    tile: tuple[int, int] | None = None,
    num_components: int = 3,
    coding: bytes = b"\x00\x04\x04\x00\x01",
    num_layers: int = 1,
    in_tile: bytes = b"",
) -> bytes:
    """A codestream without pixels. `coding`: levels, width and height of code blocks, style, transform, precincts."""
    tile = tile or size
    siz = struct.pack(">HIIIIIIIIH", 0, *size, 0, 0, *tile, 0, 0, num_components) + b"\x07\x01\x01" * num_components
    cod = struct.pack(">BBHB", len(coding) > 5, 0, num_layers, 0) + coding
    qcd = b"\x40" + b"\x40" * (1 + 3 * coding[0])
    part = struct.pack(">HHHIBB", 0xFF90, 10, 0, 0, 0, 1) + in_tile + b"\xff\x93" + b"\x80" * 8 + b"\xff\xd9"
    return b"\xff\x4f" + segment(0x51, siz) + segment(0x52, cod) + segment(0x5C, qcd) + part


def jp2(codestream: bytes, *boxes: bytes) -> bytes:
    def box(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(body), kind) + body

    header = box(b"ihdr", struct.pack(">IIHBBBB", 10, 10, 3, 7, 7, 0, 0)) + b"".join(boxes)
    return box(b"jP  ", b"\r\n\x87\n") + box(b"jp2h", header) + box(b"jp2c", codestream)


TILED = {256: ("I", [100]), 257: ("I", [100]), 258: ("H", [8]), 259: ("H", [5]), 262: ("H", [1]), 277: ("H", [1])}
MANY_TILES = {322: ("I", [16]), 323: ("I", [16]), 324: ("I", [8] * 500), 325: ("I", [8] * 500)}
HUGE_TILE = {322: ("I", [46336]), 323: ("I", [46336]), 324: ("I", [8]), 325: ("I", [8])}

# The cases that the fault was found with, then others of their kind.
COSTLY = {
    "BMP, run-length coded": (bmp_run_length(8000, 8000), "run-length coding"),
    "FITS": (b"SIMPLE  =                    T".ljust(6000), "not a picture in a format that is read"),
    "PPM of comments": (b"P6\n" + b"#\n" * 10_000 + b"1 1 255\n\0\0\0", "not a picture in a format that is read"),
    "JPEG of EXIF segments": (jpeg(*[segment(0xE1, b"Exif\0\0MM")] * 3000), "17 segments of EXIF, expected at most 16"),
    "JPEG of 2,000 scans": (jpeg_of_scans(2000), "101 scans, expected at most 100"),
    "TIFF with one large tile": (tiff(TILED | HUGE_TILE), "2,147,024,896 pixels in a tile, expected at most 4,194,304"),
    "JPEG 2000 of 65,535 tiles": (jpeg_2000((65535, 1), (1, 1)), "65,535 tiles, expected at most 4,096"),
    "WebP of 89 megapixels": (webp_canvas(9459, 9459), "89,472,681 pixels, expected at most 63,161,283"),
    "WebP, lossy": (webp_frame(b"VP8 ", 9459, 9459), "89,472,681 pixels"),
    "WebP, lossless": (webp_frame(b"VP8L", 9459, 9459), "89,472,681 pixels"),
    "JPEG of empty segments": (jpeg(*[segment(0xE5, b"")] * 2000), "1,025 segments"),
    "JPEG of quantization tables": (jpeg(*[segment(0xDB, bytes(65))] * 30), "17 segments of quantization tables"),
    "JPEG of junk": (jpeg(segment(0xE5, b""), bytes(100_000)), "100,000 bytes between segments"),
    "JPEG of scans over many pixels": (jpeg_of_scans(20, (9000, 9000)), "1,458,000,000 pixels in all its scans"),
    "JPEG with a larger frame inside": (jpeg(segment(0xC0, b"\x08\xff\xff\xff\xff\x00")), "4,294,836,225 pixels"),
    "PNG of text": (png(*[png_chunk(b"tEXt", b"a\0b")] * 300), "257 chunks beside those of pixels"),
    "PNG of empty pixel chunks": (png(*[png_chunk(b"IDAT")] * 70_000), "65,537 chunks of pixels"),
    "GIF of comments": (gif(b"!\xfe" + b"\x01a" * 70_000 + b"\0"), "65,537 blocks in front of its first frame"),
    "GIF of extensions": (gif(b"!\xf9\0" * 70_000), "65,537 blocks in front of its first frame"),
    "GIF of junk": (gif(bytes(70_000)), "65,537 blocks in front of its first frame"),
    "TIFF of tiles over tiles": (tiff(TILED | MANY_TILES), "500 strips or tiles, expected at most 57"),
    "TIFF of 70,000 strips": (tiff(TILED | {273: ("I", [8] * 70_000)}), "70,000 strips or tiles"),
    "TIFF of many bits": (tiff(TILED | {258: ("H", [8] * 300_000)}), "300,000 numbers in a tag"),
    "TIFF of many tags": (tiff(TILED, big=True, num_tags=1 << 40), "1,099,511,627,776 tags"),
    "TIFF with a large directory inside": (tiff(TILED | {34665: ("I", [100_000])}, b"\xff" * 200_000), "65,535 tags"),
    "TIFF, big-endian": (tiff(TILED | HUGE_TILE, order=">"), "2,147,024,896 pixels in a tile"),
    "BigTIFF": (tiff(TILED | HUGE_TILE, big=True), "2,147,024,896 pixels in a tile"),
    "JPEG 2000 of 64 megapixels": (jpeg_2000((8000, 8000)), "64,000,000 pixels, expected at most 42,949,672"),
    "JPEG 2000 of components": (jpeg_2000((64, 64), num_components=16384), "16,384 components"),
    "JPEG 2000 of code blocks": (jpeg_2000((2048, 2048), coding=b"\0\0\0\0\1"), "code blocks of 16 samples"),
    "JPEG 2000 of precincts": (jpeg_2000((2048, 2048), coding=b"\0\4\4\0\1\0"), "12,582,912 precincts"),
    "JPEG 2000 of layers": (jpeg_2000((2048, 2048), coding=b"\0\4\4\0\1\x55", num_layers=65535), "805,294,080 packets"),
    "JPEG 2000, costly in a tile": (
        jpeg_2000((2048, 2048), in_tile=segment(0x52, b"\1\0\0\1\0\0\4\4\0\1\0")),
        "12,582,912 precincts",
    ),
    "JPEG 2000, costly in a component": (
        jpeg_2000((2048, 2048), in_tile=segment(0x53, b"\0\1\0\4\4\0\1\0")),
        "12,582,912 precincts",
    ),
    "JPEG 2000 of comments": (
        jpeg_2000((64, 64), in_tile=segment(0x64, b"") * 70_000),
        "65,537 segments in its headers",
    ),
    "JPEG 2000 of unknown markers": (jpeg_2000((64, 64), in_tile=segment(0x30, b"")), "the marker 0xff30 in a header"),
    "JP2 of 65,535 tiles": (jp2(jpeg_2000((65535, 1), (1, 1))), "65,535 tiles"),
    "JP2 of boxes": (jp2(b"", *[b"\0\0\0\x08free"] * 2000), "1,025 boxes"),
}


@pytest.mark.parametrize("case", COSTLY)
def test_a_small_file_that_costs_much_is_refused_before_it_is_decoded(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*args: object, **options: object) -> None:
        raise AssertionError("Pillow was asked")

    monkeypatch.setattr(Image, "open", decode)
    data, message = COSTLY[case]
    with pytest.raises(ImageError, match=re.escape(message)) as refusal:
        load_picture(data)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_no_list_of_decoders_written_in_python_is_needed() -> None:
    """The one decoder in Python of the accepted formats is that of run-length coded BMP."""
    for _, format_ in bounds.FORMATS:
        module = __import__(f"PIL.{format_.plugin}", fromlist=["PIL"])
        decoders = [name for name, item in vars(module).items() if isinstance(item, type) and name.endswith("Decoder")]
        assert decoders in ([], ["BmpRleDecoder"]), format_.name


# --- what is accepted -------------------------------------------------------------------------------------------------


@cache
def ordinary_files() -> dict[str, bytes]:
    image, exif = Image.fromarray(RGB).resize((150, 100)), Image.Exif()
    exif[0x0112] = 6
    rich = {"exif": exif, "icc_profile": bytes(200_000)}
    files = {
        "JPEG": encoded(image, "JPEG", progressive=True, **rich),
        "JPEG with depth map": jpeg(*[segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(60_000))] * 100),
        "JPEG with restarts": encoded(image, "JPEG", restart_marker_blocks=1),
        "MPO": encoded(image, "MPO", save_all=True, append_images=[image] * 3),
        "PNG": encoded(image, "PNG", **rich),
        "APNG": encoded(image, "PNG", save_all=True, append_images=[image.rotate(n) for n in range(1, 30)]),
        "GIF": encoded(image, "GIF", save_all=True, append_images=[image.rotate(90)] * 5, comment=b"c" * 5000),
        "BMP": encoded(image.convert("P"), "BMP"),
        "TIFF in strips": encoded(image, "TIFF", compression="tiff_lzw", strip_size=900, **rich),
        "BigTIFF": encoded(image, "TIFF", big_tiff=True),
        "TIFF in tiles": tiff(
            {
                **TILED,
                259: ("H", [1]),
                322: ("I", [64]),
                323: ("I", [64]),
                324: ("I", [-1] * 4),
                325: ("I", [4096] * 4),
            },
            bytes(4096),
        ),
    }
    if "webp" in picture_features():
        files["WebP"] = encoded(image, "WEBP", **rich)
        files["WebP, animated"] = encoded(image, "WEBP", lossless=True, save_all=True, append_images=[image.rotate(5)])
    if "jpg_2000" in picture_features():
        files["JPEG 2000"] = encoded(image, "JPEG2000", quality_mode="rates", quality_layers=[80, 40, 20])
        files["JPEG 2000 in tiles"] = encoded(
            image,
            "JPEG2000",
            tile_size=(64, 64),
            codeblock_size=(32, 32),
            precinct_size=(64, 64),
            no_jp2=True,
            plt=True,
        )
    return files


def test_what_cameras_and_editors_write_is_accepted() -> None:
    for name, data in ordinary_files().items():
        assert max(load_picture(data).size_hw) > 30, name


def test_cut_off_files_are_left_to_the_decoder() -> None:
    for name, data in ordinary_files().items():
        for length in (16, 20, 31, 60, len(data) // 2):
            assert isinstance(bounds.check_structure(data[:length], name), bounds.Format)


def test_offsets_beyond_all_files_are_left_to_the_decoder() -> None:
    far = {**TILED, 34665: ("Q", [(1 << 64) - 1]), 256: ("Q", [1, 2])}
    data = tiff(far, big=True)
    at = data.index(struct.pack("<HHQ", 256, 16, 2)) + 12
    for cut in (data, data[:8] + b"\xff" * 8 + data[16:], data[:at] + b"\xff" * 8 + data[at + 8 :]):
        with pytest.raises(ImageError, match="cannot be decoded"):
            load_picture(cut)


def test_other_formats_are_taken_as_pillow_images() -> None:
    data = encoded(Image.fromarray(RGB), "PPM")
    with pytest.raises(ImageError, match="open it with Pillow yourself"):
        load_picture(data)
    assert (load_picture(Image.open(io.BytesIO(data))).rgb() == RGB).all()


# --- others are not held up, and memory -------------------------------------------------------------------------------


def test_a_slow_picture_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on, results = threading.Event(), threading.Event(), []
    slow, quick = encoded(Image.fromarray(RGB), "BMP"), encoded(Image.fromarray(RGB), "PNG")
    opened = Image.open

    def open_slowly(file: io.BytesIO, *args: Any, **options: Any) -> Any:
        if file.getvalue() == slow:
            entered.set()
            assert go_on.wait(60)
        return opened(file, *args, **options)

    monkeypatch.setattr(picture.Image, "open", open_slowly)
    before = list(warnings.filters)
    thread = threading.Thread(target=lambda: results.append(load_picture(slow)))
    thread.start()
    assert entered.wait(60)
    assert (load_picture(quick).rgb() == RGB).all()
    with pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", stacklevel=1)
    go_on.set()
    thread.join(60)
    assert len(results) == 1
    assert list(warnings.filters) == before


needs_jpeg_2000 = pytest.mark.skipif("jpg_2000" not in picture_features(), reason="Pillow has no JPEG 2000")


@needs_jpeg_2000
@pytest.mark.parametrize("mode", ["RGB", "LA", "I;16"])
def test_a_jpeg_2000_is_the_same_from_a_process_of_its_own(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(RGB[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(RGB)
    data = encoded(image if mode == "I;16" else image.convert(mode), "JPEG2000")
    here = load_picture(data)
    monkeypatch.setattr(jpeg2000, "MIN_PIXELS", 1)
    apart = jpeg2000.decode_apart(data)
    assert apart is not None
    assert apart.mode == mode
    assert load_picture(data) == here
    monkeypatch.setattr(sys, "executable", "/bin/true")  # another program, as where Python is embedded
    assert jpeg2000.decode_apart(data) is None
    assert load_picture(data) == here


@needs_jpeg_2000
def test_what_fails_in_a_process_of_its_own_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg2000, "MIN_PIXELS", 1)
    data = encoded(Image.fromarray(RGB), "JPEG2000")
    with pytest.raises(ImageError, match=r"cannot be decoded: .* \(OSError\). Expected a complete picture"):
        load_picture(data[: len(data) // 4])
    killed = subprocess.CompletedProcess([], -9, b"", None)
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: killed)
    with pytest.raises(ImageError, match="its decoder was stopped by signal 9"):
        load_picture(data)


PEAK = """
import re, sys
from pathlib import Path
from varco_runtime.picture.loading import load_picture

def peak_bytes():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

small, large = (Path(path).read_bytes() for path in sys.argv[1:])
load_picture(small)
before = peak_bytes()
picture = load_picture(large)
print((peak_bytes() - before) / (picture.width * picture.height))
"""
"""Bytes per pixel that a picture takes at most, in a process that has decoded a small one."""


@pytest.mark.parametrize(
    ("file_format", "mode", "bytes_per_pixel"),
    [
        ("WEBP", "RGBA", bounds.WEBP_BYTES_PER_PIXEL),
        ("JPEG", "CMYK", 12),
        ("TIFF", "F", 12),
        pytest.param("JPEG2000", "RGB", 25, marks=pytest.mark.full),
        pytest.param("JPEG2000", "RGBA", 32, marks=pytest.mark.full),
        pytest.param("PNG", "RGBA", 12, marks=pytest.mark.full),
        pytest.param("PNG", "I;16", 12, marks=pytest.mark.full),
        pytest.param("GIF", "P", 12, marks=pytest.mark.full),
        pytest.param("BMP", "RGB", 12, marks=pytest.mark.full),
    ],
)
def test_decoding_takes_the_memory_that_is_stated(
    file_format: str, mode: str, bytes_per_pixel: int, tmp_path: Path
) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc/self/status")
    options = {"WEBP": {"lossless": True, "method": 0, "quality": 0}, "JPEG": {"progressive": True, "subsampling": 0}}
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8))
    for name, side in (("small", 50), ("large", 2000)):
        image = noise.resize((side, side))
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257)
        (tmp_path / name).write_bytes(encoded(image.convert(mode), file_format, **options.get(file_format, {})))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    slack = 5.0  # 20 MB: blocks that are hashed and scaled, and what the allocator keeps
    assert bytes_per_pixel / 3 < float(done.stdout) < bytes_per_pixel + slack, "the measure itself must see the picture"
