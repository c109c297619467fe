"""Boxes and labels painted on a copy of the picture.

Lines and letters grow with the picture, and shrink around small text. Objects take warm colors and texts cool ones,
region by region in turn; a dark casing keeps lines visible on any ground. Lines run around the box, so that nothing in
it is covered. Each label goes to the place around its box where it hides least: other labels first, then small boxes,
then its own box.
"""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from varco_runtime.markup.regions import Kind, Region

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom lie outside
Color = tuple[int, int, int]

FONT_FILE = "EdgeLabelSans-Bold.woff"
MIN_FONT_PX = 9
MAX_LABEL_CHARS = 80
MAX_REPEATED_SHARE = 0.04  # of the picture; a larger label stands at the first box of its region only
PALETTES: dict[Kind, tuple[Color, ...]] = {
    "object": ((208, 32, 52), (255, 183, 3), (184, 44, 140), (251, 113, 33), (140, 60, 25), (255, 148, 148)),
    "text": ((29, 105, 214), (0, 191, 165), (124, 77, 255), (64, 196, 255), (31, 132, 56), (179, 157, 255)),
}
CASING: Color = (16, 16, 20)


@dataclass(frozen=True, slots=True)
class Scale:
    """Line width and letter size in pixels."""

    line_px: int
    font_px: int

    @classmethod
    def of_picture(cls, width: int, height: int) -> Scale:
        side = math.sqrt(width * height)
        return cls(line_px=max(1, round(side / 230)), font_px=max(MIN_FONT_PX, round(side * 0.024)))

    def around_text(self, marks: Sequence[_Mark]) -> Scale:
        """Return a scale finer than the picture's texts, by their median height: a page of print would drown else."""
        heights_px = [mark.box[3] - mark.box[1] for mark in marks if mark.kind == "text"]
        text_px = median(heights_px) if heights_px else math.inf
        return Scale(
            line_px=int(min(self.line_px, max(1, text_px // 13))),
            font_px=round(min(self.font_px, max(MIN_FONT_PX, text_px * 0.55))),
        )


@dataclass(frozen=True, slots=True)
class _Mark:
    """One box to paint, in the color of its region; `first` of the region's boxes or not."""

    kind: Kind
    box: Rectangle
    text: str
    color: Color
    first: bool


def draw(image: Image.Image, regions: Iterable[Region]) -> Image.Image:
    """Paint every box with its text on an RGB copy of `image`, whose transparent parts become white."""
    canvas = _on_white(image)
    marks = _marks(regions, canvas.size)
    scale = Scale.of_picture(*canvas.size)
    scales: dict[Kind, Scale] = {"object": scale, "text": scale.around_text(marks)}
    pen = ImageDraw.Draw(canvas)
    for mark in marks:
        _paint_box(pen, mark, scales[mark.kind].line_px, canvas.size)
    _paint_labels(pen, marks, scales, canvas.size)
    return canvas


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode != "RGB" else image.copy()
    layer = image.convert("RGBA")
    ground = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(ground, layer).convert("RGB")


def _marks(regions: Iterable[Region], size: tuple[int, int]) -> list[_Mark]:
    marks: list[_Mark] = []
    seen: dict[Kind, int] = {"text": 0, "object": 0}
    for region in regions:
        palette = PALETTES[region.kind]
        color = palette[seen[region.kind] % len(palette)]
        seen[region.kind] += 1
        text = _printable(region.text)
        boxes = region.pixels(*size)
        marks += [_Mark(region.kind, box, text, color, first=index == 0) for index, box in enumerate(boxes)]
    return marks


def _printable(text: str) -> str:
    """Return one line of composed characters, without what has no shape (controls, joiners, variation selectors)."""
    composed = unicodedata.normalize("NFC", " ".join(text.split()))
    shown = "".join(char for char in composed if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Mn"))
    return shown if len(shown) <= MAX_LABEL_CHARS else shown[: MAX_LABEL_CHARS - 1] + "…"


def _paint_box(pen: ImageDraw.ImageDraw, mark: _Mark, line_px: int, size: tuple[int, int]) -> None:
    left, top = max(mark.box[0] - line_px, 0), max(mark.box[1] - line_px, 0)
    right, bottom = min(mark.box[2] + line_px, size[0]) - 1, min(mark.box[3] + line_px, size[1]) - 1
    if line_px > 1:  # thinner lines would be all casing
        casing_px = max(1, line_px // 4)
        around = (left - casing_px, top - casing_px, right + casing_px, bottom + casing_px)
        pen.rectangle(around, outline=CASING, width=line_px + 2 * casing_px)
    pen.rectangle((left, top, right, bottom), outline=mark.color, width=line_px)


def _paint_labels(
    pen: ImageDraw.ImageDraw, marks: Sequence[_Mark], scales: Mapping[Kind, Scale], size: tuple[int, int]
) -> None:
    taken = np.zeros((0, 4))
    boxes = np.array([mark.box for mark in marks], np.float64).reshape(-1, 4)
    for index in sorted(range(len(marks)), key=lambda i: _area(marks[i].box)):  # small boxes choose first
        mark = marks[index]
        scale = scales[mark.kind]
        label = _fit(mark.text, scale.font_px, size)
        if label is None or (not mark.first and label.width * label.height > MAX_REPEATED_SHARE * size[0] * size[1]):
            continue
        others = np.delete(boxes, index, axis=0)
        place, harm = _place(label, mark.box, others, taken, scale.line_px, size)
        smaller = _fit(mark.text, max(round(scale.font_px * 0.75), MIN_FONT_PX), size) if harm > 1 else None
        if smaller is not None:
            label = smaller
            place, _ = _place(label, mark.box, others, taken, scale.line_px, size)
        taken = np.vstack([taken, place])
        label.paint(pen, place, mark.color)


@dataclass(frozen=True, slots=True)
class _Label:
    text: str
    font: ImageFont.FreeTypeFont
    width: int
    height: int
    margin_px: int

    def paint(self, pen: ImageDraw.ImageDraw, place: Rectangle, color: Color) -> None:
        left, top, right, bottom = place
        pen.rounded_rectangle((left, top, right - 1, bottom - 1), radius=self.height // 6, fill=color)
        ascent, descent = self.font.getmetrics()
        baseline = top + (self.height + ascent - descent) // 2
        pen.text((left + self.margin_px, baseline), self.text, fill=_ink_on(color), font=self.font, anchor="ls")


def _fit(text: str, font_px: int, size: tuple[int, int]) -> _Label | None:
    """Return the label of `text`, shortened to the picture's width; None without text or where no letter fits."""
    font = _font(font_px)
    margin_px = max(2, font_px // 4)
    height = sum(font.getmetrics()) + max(0, font_px // 10)
    for length in range(len(text), 0, -1):
        shown = text if length == len(text) else text[:length].rstrip() + "…"
        width = math.ceil(font.getlength(shown)) + 2 * margin_px
        if width <= size[0] and height <= size[1]:
            return _Label(shown, font, width, height, margin_px)
    return None


def _place(
    label: _Label,
    box: Rectangle,
    others: NDArray[np.float64],
    taken: NDArray[np.float64],
    line_px: int,
    size: tuple[int, int],
) -> tuple[Rectangle, float]:
    """Return the least harmful of the places around and in the box, pushed into the picture, and its harm."""
    x1, y1, x2, y2 = box
    w, h = label.width, label.height
    corners = (
        (x1 - line_px, y1 - h),  # above, from the left
        (x2 + line_px - w, y1 - h),  # above, to the right
        (x1 - line_px, y2),  # below
        (x2 + line_px - w, y2),
        (x1, y1),  # inside
        (x2 - w, y1),
        (x1, y2 - h),
        (x2 - w, y2 - h),
        (x2, (y1 + y2 - h) // 2),  # beside
        (x1 - w, (y1 + y2 - h) // 2),
    )
    best, least = (0, 0, w, h), math.inf
    for rank, (x, y) in enumerate(corners):
        left, top = min(max(x, 0), size[0] - w), min(max(y, 0), size[1] - h)
        place = (left, top, left + w, top + h)
        harm = 100 * _hidden(place, taken) + 10 * _hidden(place, others)
        harm += 6 * _hidden(place, np.array([box], np.float64)) + 0.01 * rank
        if harm < least:
            best, least = place, harm
    return best, least


def _hidden(place: Rectangle, boxes: NDArray[np.float64]) -> float:
    """Return the share of each box that `place` covers, summed."""
    if not len(boxes):
        return 0.0
    width = np.minimum(boxes[:, 2], place[2]) - np.maximum(boxes[:, 0], place[0])
    height = np.minimum(boxes[:, 3], place[3]) - np.maximum(boxes[:, 1], place[1])
    areas = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1)
    return float((np.maximum(width, 0) * np.maximum(height, 0) / areas).sum())


def _area(box: Rectangle) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _ink_on(color: Color) -> Color:
    """Return black or white, whichever contrasts more (relative luminance of WCAG 2)."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


@lru_cache(maxsize=8)
def _font(font_px: int) -> ImageFont.FreeTypeFont:
    data = resources.files("varco_runtime").joinpath("fonts", FONT_FILE).read_bytes()
    return ImageFont.truetype(io.BytesIO(data), font_px, layout_engine=ImageFont.Layout.BASIC)
