"""Pictures through the server: the answer, its warnings and what is found in the cache are those of `Varco.ask`."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from tests.makers.picture_files import encoded
from tests.makers.server import DEMO_BUNDLE, RunningServer
from varco_runtime import Varco
from varco_runtime.picture.loading import load_picture

with Image.open(DEMO_BUNDLE.parents[2] / "docs/images/sign.png") as sign:
    SIGN = sign.convert("RGB").resize((228, 228))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def damaged_exif() -> bytes:
    data = encoded(SIGN, "JPEG", exif=turned(6))
    at = data.index(b"Exif\0\0")
    return data[: at + 6] + b"\xff" * 12 + data[at + 18 :]


FILES = {
    "PNG": encoded(SIGN),
    "PNG with alpha": encoded(SIGN.convert("RGBA")),
    "PNG of 16 bits": encoded(SIGN.convert("L").convert("I;16")),
    "JPEG": encoded(SIGN, "JPEG"),
    "JPEG on its side": encoded(SIGN.crop((0, 0, 228, 100)), "JPEG", exif=turned(6)),
    "JPEG with damaged EXIF": damaged_exif(),
    "WebP": encoded(SIGN, "WEBP", lossless=True),
    "GIF": encoded(SIGN.convert("P"), "GIF"),
    "animated GIF": encoded(SIGN.convert("P"), "GIF", save_all=True, append_images=[SIGN.rotate(90).convert("P")]),
    "BMP": encoded(SIGN, "BMP"),
    "1x1": encoded(Image.new("RGB", (1, 1), (9, 200, 3))),
    "1xN": encoded(SIGN.crop((50, 0, 51, 228))),
}
ANSWER = {"max_tokens": 12, "seed": 1}


@pytest.fixture(scope="module")
def varco() -> Varco:
    return Varco.load(DEMO_BUNDLE, provider="cpu", threads=1)


def said(document: dict[str, Any]) -> dict[str, Any]:
    """What an answer says, without what its cache and its clock do."""
    usage = {name: value for name, value in document["usage"].items() if name != "cached_tokens"}
    return {name: value for name, value in document.items() if name != "timings"} | {"usage": usage}


def ocr(server: RunningServer, data: bytes) -> dict[str, Any]:
    answer = server.client.post("/v1/ocr?max_tokens=12", content=data, headers={"content-type": "image/png"})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_answered_as_varco_ask_answers_it(server: RunningServer, varco: Varco, name: str) -> None:
    document = ocr(server, FILES[name])
    assert said(document) == said(varco.ocr(FILES[name], max_new_tokens=12).to_dict())
    assert any("animation" in line for line in document["warnings"]) is (name == "animated GIF")


def test_equal_pixels_are_one_picture_to_the_cache_whatever_the_file(server: RunningServer) -> None:
    SIGN.rotate(180).save(file := io.BytesIO(), "PNG")
    other = load_picture(file.getvalue()).image
    first = ocr(server, encoded(other, "PNG"))
    for key, options in (("BMP", {}), ("WEBP", {"lossless": True}), ("PNG", {"compress_level": 0})):
        again = ocr(server, encoded(other, key, **options))
        assert said(again) == said(first)
        assert again["usage"]["cached_tokens"] > first["usage"]["image_tokens"], key


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        (b"%PDF-1.7", 400, "The picture is of the kind 'PDF document'. Expected PNG, JPEG, WebP, GIF or BMP;"),
        (encoded(SIGN, "TIFF"), 400, "The picture is of the kind 'TIFF'."),
        (FILES["JPEG"][:2000], 400, "The JPEG is damaged or cut off."),
        (b"GIF89a", 400, "The GIF is damaged or cut off."),
    ],
)
@pytest.mark.parametrize("is_chat", [True, False])
def test_a_file_that_is_refused_costs_its_own_request_one_line(
    server: RunningServer, data: bytes, status: int, says: str, is_chat: bool
) -> None:
    before = server.pictures_pid
    if is_chat:
        url = "data:image/png;base64," + base64.b64encode(data).decode()
        answer = server.chat(
            [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}], **ANSWER
        )
    else:
        answer = server.client.post("/v1/ocr", content=data, headers={"content-type": "image/png"})
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]
    assert server.pictures_pid == before
    assert ocr(server, FILES["PNG"])["finish_reason"]
