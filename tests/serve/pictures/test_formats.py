"""What a file is, by its first bytes; nothing that is no picture of the five kinds gets past its name."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.makers.picture_files import encoded
from varco_serve.pictures.decoding import RefusedError, decode
from varco_serve.pictures.formats import ACCEPTED, format_name

IMAGE = Image.new("RGB", (3, 2), (10, 20, 30))


@pytest.mark.parametrize("key", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_the_five_formats_are_known_by_their_bytes(key: str) -> None:
    data = encoded(IMAGE, key)
    assert format_name(data) in ACCEPTED
    assert (decode(data).width, decode(data).height) == (3, 2)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (encoded(IMAGE, "TIFF"), "TIFF"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\x00\x00\x00\x20ftypavif", "AVIF picture"),
        (b"\x00\x00\x00\x18ftypheic", "HEIC picture"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL picture"),
        (b"\xff\x0a\x00", "JPEG XL picture"),
        (b"\x00\x00\x01\x00\x01\x00", "Windows icon"),
        (b"8BPS\x00\x01", "Photoshop document"),
        (b"%PDF-1.7", "PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript document"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG drawing"),
        (b"\n<svg/>", "SVG drawing"),
        (b"<!doctype html><title>404</title>", "text of markup"),
        (b"\x00\x00\x00\x18ftypmp42", "video"),
        (b"\x1aE\xdf\xa3", "video"),
        (b"RIFF\x00\x00\x00\x00AVI LIST", "video"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "sound"),
        (b"ID3\x04", "sound"),
        (b"PK\x03\x04", "archive"),
        (b"\x1f\x8b\x08", "archive"),
    ],
)
def test_what_is_refused_is_called_by_its_name(data: bytes, name: str) -> None:
    assert format_name(data) == name
    with pytest.raises(RefusedError) as refused:
        decode(data)
    assert str(refused.value) == (
        f"The picture is of the kind {name!r}. Expected PNG, JPEG, WebP, GIF or BMP; convert it to one of them."
    )
    assert refused.value.code == "invalid_image_format"
    assert refused.value.is_ordinary


@pytest.mark.parametrize("data", [b"hello", b"\x00", b"P6 1 1 255\n\x00\x00\x00", b"SIMPLE  ="])
def test_what_is_unknown_is_in_no_known_format(data: bytes) -> None:
    assert format_name(data) is None
    with pytest.raises(RefusedError, match=r"^The picture is in no format that is known here\. Expected PNG, "):
        decode(data)


def test_an_empty_file_says_so() -> None:
    with pytest.raises(RefusedError, match=r"^The picture is empty \(0 bytes\)\. Expected PNG, ") as refused:
        decode(b"")
    assert refused.value.code == "empty_image_file"
