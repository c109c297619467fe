"""Boxes and labels on pictures, and the font they are written in."""

from __future__ import annotations

import io
import unicodedata
from collections import Counter
from collections.abc import Sequence
from importlib import resources

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFont

from varco_runtime.answer import draw as draw_module
from varco_runtime.answer.draw import FONT_FILE, MAX_LABEL_CHARS, MIN_FONT_PX, PALETTES, Scale, draw
from varco_runtime.markup.regions import Box, Kind, Region

GREY = (128, 128, 128)


def picture(width: int = 400, height: int = 300) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def region(text: str, *boxes: Box, kind: Kind = "object") -> Region:
    return Region(kind, text, boxes or (Box(0.25, 0.25, 0.75, 0.75),), 0, len(text))


def painted(before: Image.Image, after: Image.Image) -> tuple[int, int, int, int] | None:
    return ImageChops.difference(before.convert("RGB"), after).getbbox()


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


class Labels:
    """The labels that `draw` painted, as it painted them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.places: list[tuple[int, int, int, int]] = []
        self.texts: list[str] = []
        self.font_px: list[float] = []
        paint = draw_module._Label.paint

        def spy(
            label: draw_module._Label,
            pen: ImageDraw.ImageDraw,
            place: tuple[int, int, int, int],
            color: tuple[int, int, int],
        ) -> None:
            self.places.append(place)
            self.texts.append(label.text)
            self.font_px.append(label.font.size)
            paint(label, pen, place, color)

        monkeypatch.setattr(draw_module._Label, "paint", spy)


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> Labels:
    return Labels(monkeypatch)


def test_the_picture_itself_stays_untouched() -> None:
    image = picture()
    result = draw(image, [region("cat")])
    assert painted(picture(), image) is None
    assert result is not image
    assert result.size == image.size


def test_the_line_runs_around_the_box_and_leaves_its_inside() -> None:
    box = Box(0.25, 0.25, 0.75, 0.75)  # 100, 75 .. 300, 225
    result = draw(picture(), [region("", box)])
    line_px = Scale.of_picture(400, 300).line_px
    color = PALETTES["object"][0]
    for x, y in [(100 - line_px, 150), (99, 150), (300, 150), (200, 74), (200, 225), (200, 224 + line_px)]:
        assert result.getpixel((x, y)) == color, (x, y)
    assert (pixels(result)[78:222, 103:297] == GREY).all()


def test_a_box_at_the_border_stays_visible() -> None:
    result = draw(picture(), [region("", Box(0, 0, 1, 1))])
    color = PALETTES["object"][0]
    assert [result.getpixel(at) for at in [(0, 0), (399, 0), (0, 299), (399, 299), (200, 0)]] == [color] * 5


def test_kinds_and_neighbouring_regions_differ_in_colour() -> None:
    assert len({color for palette in PALETTES.values() for color in palette}) == sum(map(len, PALETTES.values()))
    spots = [Box(0.1, 0.1, 0.2, 0.2), Box(0.4, 0.4, 0.5, 0.5), Box(0.7, 0.7, 0.8, 0.8)]
    kinds: list[Kind] = ["object", "object", "text"]
    result = draw(picture(), [region("", box, kind=kind) for box, kind in zip(spots, kinds, strict=True)])
    colors = [result.getpixel((box.pixels(400, 300)[0], box.pixels(400, 300)[1] - 1)) for box in spots]
    assert colors == [PALETTES["object"][0], PALETTES["object"][1], PALETTES["text"][0]]


def test_all_boxes_of_a_region_share_its_colour() -> None:
    result = draw(
        picture(), [region("", Box(0.1, 0.1, 0.2, 0.2), Box(0.5, 0.5, 0.6, 0.6)), region("", Box(0.8, 0, 0.9, 0.1))]
    )
    assert result.getpixel((40, 29)) == result.getpixel((200, 149)) == PALETTES["object"][0]


@pytest.mark.parametrize("color", [color for palette in PALETTES.values() for color in palette])
def test_letters_contrast_with_their_label(color: tuple[int, int, int]) -> None:
    def luminance(rgb: tuple[int, int, int]) -> float:
        linear = [((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    low, high = sorted((luminance(color), luminance(draw_module._ink_on(color))))
    assert (high + 0.05) / (low + 0.05) >= 4.5, "WCAG 2 asks 4.5 to 1 for text"


@pytest.mark.parametrize("size", [(64, 64), (300, 40), (40, 300), (640, 480), (4000, 3000)])
def test_lines_and_letters_grow_with_the_picture_and_stay_readable(size: tuple[int, int], labels: Labels) -> None:
    result = draw(picture(*size), [region("고양이")])
    assert painted(picture(*size), result) is not None
    (font_px,) = labels.font_px
    assert font_px >= MIN_FONT_PX
    assert font_px >= 0.02 * (size[0] * size[1]) ** 0.5
    assert font_px <= 0.15 * (size[0] * size[1]) ** 0.5


@pytest.mark.parametrize("size", [(64, 64), (200, 30), (30, 200), (640, 480)])
@pytest.mark.parametrize("text", ["cat", "만수주공아파트 " * 20])
def test_labels_stay_in_the_picture(size: tuple[int, int], text: str, labels: Labels) -> None:
    corners = [Box(0, 0, 0.1, 0.1), Box(0.9, 0, 1, 0.1), Box(0, 0.9, 0.1, 1), Box(0.9, 0.9, 1, 1), Box(0, 0, 1, 1)]
    draw(picture(*size), [region(text, box) for box in corners])
    assert len(labels.places) == len(corners)
    for left, top, right, bottom in labels.places:
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


def overlaps(places: Sequence[tuple[int, int, int, int]]) -> list[tuple[int, int]]:
    return [
        (i, j)
        for i, a in enumerate(places)
        for j, b in enumerate(places[:i])
        if min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
    ]


def test_labels_keep_off_each_other(labels: Labels) -> None:
    same = Box(0.3, 0.3, 0.7, 0.7)
    draw(
        picture(),
        [region("one", same), region("two", same), region("three", same), region("four", Box(0.3, 0.3, 0.72, 0.72))],
    )
    assert len(labels.places) == 4
    assert overlaps(labels.places) == []


def test_labels_of_a_sign_hide_none_of_its_words(labels: Labels) -> None:
    words = [Box(x / 10, y / 10, (x + 2) / 10, (y + 1) / 10) for y in (2, 3, 6, 7) for x in (1, 4, 7)]  # pairs of rows
    draw(picture(1000, 700), [region("시청", box, kind="text") for box in words])
    assert overlaps(labels.places) == []
    hidden = [overlaps([place, box.pixels(1000, 700)]) for place in labels.places for box in words]
    assert not any(hidden)


def test_small_text_gets_small_labels_and_thin_lines(labels: Labels) -> None:
    print_px, sign_px = 24 / 1754, 240 / 1754
    for height in (print_px, sign_px):
        draw(picture(1240, 1754), [region("합계", Box(0.1, 0.5, 0.2, 0.5 + height), kind="text")])
    assert labels.font_px[0] <= 24 * 0.6 < labels.font_px[1]


def test_a_thumbnail_labels_only_the_first_box_of_a_region(labels: Labels) -> None:
    cats = region("two cats", Box(0, 0.1, 0.5, 1), Box(0.5, 0.1, 1, 0.8))
    draw(picture(64, 64), [cats])
    assert labels.texts == ["two cats"]
    draw(picture(640, 480), [cats])
    assert labels.texts == ["two cats"] * 3


def test_a_long_label_is_cut_with_an_ellipsis(labels: Labels) -> None:
    draw(picture(120, 120), [region("백범로 " * 100)])
    draw(picture(4000, 3000), [region("x" * 500)])
    assert [text[-1] for text in labels.texts] == ["…", "…"]
    assert len(labels.texts[1]) == MAX_LABEL_CHARS


def test_control_characters_and_line_breaks_are_not_drawn(labels: Labels) -> None:
    draw(picture(), [region("a\n b\u200d\x07\ufe0f\tc"), region(unicodedata.normalize("NFD", "각"))])
    assert sorted(labels.texts) == ["a b c", "각"]


@pytest.mark.parametrize("text", ["", " \n", "\u200b"])
def test_a_region_without_visible_text_gets_a_box_alone(text: str, labels: Labels) -> None:
    assert painted(picture(), draw(picture(), [region(text)])) is not None
    assert labels.texts == []


def test_a_region_without_boxes_paints_nothing() -> None:
    nowhere = Region("object", "cat", (), 0, 3)
    assert painted(picture(), draw(picture(), [nowhere])) is None


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (5, 5)])
def test_pictures_too_small_for_a_label_still_show_the_box(size: tuple[int, int]) -> None:
    assert painted(picture(*size), draw(picture(*size), [region("cat", Box(0, 0, 1, 1), Box(1, 1, 1, 1))])) is not None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    result = draw(Image.new(mode, (100, 80)), [region("cat")])
    assert (result.mode, result.size) == ("RGB", (100, 80))


def test_transparent_parts_become_white() -> None:
    assert draw(Image.new("RGBA", (50, 50), (255, 0, 0, 0)), []).getpixel((25, 25)) == (255, 255, 255)


def test_a_page_of_hundreds_of_words_is_drawn() -> None:
    words = [Box(x / 25, y / 25, (x + 0.9) / 25, (y + 0.5) / 25) for y in range(25) for x in range(24)]
    assert painted(picture(), draw(picture(), [region("합계", box, kind="text") for box in words])) is not None


def font() -> ImageFont.FreeTypeFont:
    data = resources.files("varco_runtime").joinpath("fonts", FONT_FILE).read_bytes()
    return ImageFont.truetype(io.BytesIO(data), 20, layout_engine=ImageFont.Layout.BASIC)


def shape(char: str, of: ImageFont.FreeTypeFont) -> bytes:
    mask = of.getmask(char)
    return bytes(mask) + bytes(str(mask.size), "ascii")


def test_every_hangul_syllable_and_latin_1_letter_has_a_shape_of_its_own() -> None:
    ours = font()
    missing = shape("\U0010fffd", ours)
    hangul = [shape(chr(code), ours) for code in range(0xAC00, 0xD7A4)]
    others = [
        *range(0x21, 0x7F),
        *range(0xA1, 0x100),
        *range(0x3131, 0x3164),
        *map(ord, "‘’“”–—…·※→←↑↓★☆①㈜℃、。「」€₩"),
    ]
    assert missing not in hangul
    assert [chr(code) for code in others if code != 0xAD and shape(chr(code), ours) == missing] == []
    assert Counter(hangul).most_common(1)[0][1] <= 3, "twins at 20 pixels are rare"


def test_a_character_the_font_lacks_is_drawn_as_an_empty_box() -> None:
    mask = font().getmask("漢")
    assert sum(bytes(mask)) > 0
    assert bytes(mask) == bytes(font().getmask("\U0001f600"))


def test_the_font_is_small_renamed_and_ships_with_its_licence() -> None:
    folder = resources.files("varco_runtime").joinpath("fonts")
    assert len(folder.joinpath(FONT_FILE).read_bytes()) < 600_000
    assert font().getname() == ("Edge Label Sans", "Bold"), "the OFL keeps 'Nanum' for the original"
    assert "SIL OPEN FONT LICENSE Version 1.1" in folder.joinpath("OFL.txt").read_text(encoding="utf-8")
