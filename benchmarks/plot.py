"""Line and scatter charts as PNG, drawn with Pillow, so that benchmarks need no plotting library.

    series = [Series("varco-tiny", [Point(11.6, 5e-3, label="int4"), Point(13.0, 2e-5, label="int8")])]
    save(Chart("Quality", Axis("bundle, MB"), Axis("KL, nats", is_log=True), series), Path("quality.png"))

Axes are linear or logarithmic, with round numbers as ticks. Each series has a colour and a shape of its own, and its
name above the frame if there are several. Points may have labels, which avoid each other, and vertical error bars;
guides are vertical lines with a name, for what has no place on the other axis.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Corner = tuple[float, float]
Rectangle = tuple[float, float, float, float]

SCALE = 2
"""Pixels of the file per unit of the drawing: sharp on screens that have twice the pixels."""
SMOOTH = 2
"""Everything is drawn this much larger once more and shrunk, since Pillow draws edges without smoothing."""
MARGIN = {"left": 78, "right": 26, "top": 50, "bottom": 54}
INK, MUTED, GRID, PAPER = "#222222", "#666666", "#e4e4e4", "#ffffff"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9")
"""Okabe and Ito's, which colour-blind readers can tell apart; their yellow darkened to be read on white."""
SHAPES = ("circle", "square", "triangle", "diamond")
MAX_TICKS = 7


@dataclass(frozen=True, slots=True)
class Axis:
    """`label` names the quantity and its unit."""

    label: str
    is_log: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """A value with, optionally, its standard error along y and a label beside it."""

    x: float
    y: float
    error: float = 0.0
    label: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one kind; `is_line` joins them in their order."""

    name: str
    points: Sequence[Point]
    is_line: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """What is drawn. `guides` are values of x with a name; `size` is in units of the drawing."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    guides: Sequence[tuple[float, str]] = ()
    size: tuple[int, int] = (720, 420)


def save(chart: Chart, path: Path) -> None:
    """Write the chart as PNG, whole or not at all. Raises `ValueError` for a chart that has nothing to draw."""
    image = draw(chart)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    image.save(partial, "PNG", optimize=True)
    os.replace(partial, path)


def draw(chart: Chart) -> Image.Image:
    """The chart as an RGB picture of `size` times `SCALE` pixels."""
    canvas = _Canvas(chart)
    canvas.grid()
    canvas.guides()
    for index, series in enumerate(chart.series):
        canvas.series(series, COLOURS[index % len(COLOURS)], SHAPES[index % len(SHAPES)])
    canvas.labels()
    canvas.titles()
    width, height = chart.size
    return canvas.image.resize((width * SCALE, height * SCALE), Image.Resampling.BOX)


# --- scales -----------------------------------------------------------------------------------------------------------


def ticks(low: float, high: float, is_log: bool) -> list[float]:
    """Round numbers from the last at or below `low` to the first at or above `high`, at most `MAX_TICKS` or so.

    Linear steps are 1, 2 or 5 times a power of ten. A logarithmic axis takes powers of ten, and 2 and 5 times them
    where it spans few.
    """
    if is_log:
        first, last = math.floor(_log10(low)), math.ceil(_log10(high))
        stride = -(-(last - first) // MAX_TICKS) or 1
        if last - first > 2:
            return [10.0**power for power in range(first, last + stride, stride)]
        within = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
        below = [value for value in within if value <= low * (1 + 1e-9)]
        above = [value for value in within if value >= high * (1 - 1e-9)]
        return [value for value in within if below[-1] <= value <= above[0]]
    step = _step(high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log10(value: float) -> float:
    """Rounded, so that a power of ten is a whole number."""
    return round(math.log10(value), 9)


def _step(span: float) -> float:
    power = 10.0 ** math.floor(math.log10(span / MAX_TICKS))
    return next(factor * power for factor in (1, 2, 5, 10, 20) if span / (factor * power) <= MAX_TICKS)


def tick_text(value: float) -> str:
    """`12,000`, `0.05` or, where that would be long, `2e-6`."""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.6f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class _Scale:
    """Values of an axis to places on the canvas."""

    marks: list[float]
    start: float
    end: float
    is_log: bool

    @classmethod
    def of(cls, values: list[float], axis: Axis, start: float, end: float) -> _Scale:
        if not all(map(math.isfinite, values)):
            odd = next(value for value in values if not math.isfinite(value))
            raise ValueError(f"{axis.label} has the value {odd}, expected finite numbers.")
        low, high = min(values), max(values)
        if axis.is_log and low <= 0:
            raise ValueError(f"{axis.label} has the value {low}, expected positive ones on a logarithmic axis.")
        if not axis.is_log and low > 0 and low < 0.5 * high:
            low = 0.0
        if low == high:
            room = abs(low) or 1.0
            low, high = (low / 2, high * 2) if axis.is_log else (low - room, high + room)
        return cls(ticks(low, high, axis.is_log), start, end, axis.is_log)

    def place(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.is_log else v for v in (self.marks[0], self.marks[-1], value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


# --- drawing ----------------------------------------------------------------------------------------------------------


class _Canvas:
    """A picture being drawn, in units of the drawing. `taken` are rectangles that labels must not cover."""

    def __init__(self, chart: Chart) -> None:
        points = [point for series in chart.series for point in series.points]
        if not points:
            raise ValueError(f"The chart {chart.title!r} has no points, expected at least one.")
        width, height = chart.size
        self.chart = chart
        self.image = Image.new("RGB", (_px(width), _px(height)), PAPER)
        self._pen = ImageDraw.Draw(self.image)
        self._taken: list[Rectangle] = []
        self._waiting: list[tuple[Corner, str, str]] = []
        self._left, self._right = MARGIN["left"], width - MARGIN["right"]
        self._top = MARGIN["top"] + (24 if len(chart.series) > 1 else 0)
        self._bottom = height - MARGIN["bottom"]
        xs = [point.x for point in points] + [value for value, _ in chart.guides]
        ys = [y for point in points for y in (point.y - point.error, point.y + point.error)]
        self._x = _Scale.of(xs, chart.x, self._left, self._right)
        self._y = _Scale.of(ys, chart.y, self._bottom, self._top)

    # -- parts --------------------------------------------------------------------------------------------------------

    def grid(self) -> None:
        """Ticks with their lines and numbers, and both axes."""
        for value in self._x.marks:
            x = self._x.place(value)
            self._line([(x, self._top), (x, self._bottom)], GRID)
            self._text((x, self._bottom + 8), tick_text(value), "ma", colour=MUTED)
        for value in self._y.marks:
            y = self._y.place(value)
            self._line([(self._left, y), (self._right, y)], GRID)
            self._text((self._left - 8, y), tick_text(value), "rm", colour=MUTED)
        self._line([(self._left, self._top), (self._left, self._bottom), (self._right, self._bottom)], INK)

    def guides(self) -> None:
        for value, name in self.chart.guides:
            x = self._x.place(value)
            for y in range(int(self._top), int(self._bottom), 9):
                self._line([(x, y), (x, min(y + 5, self._bottom))], MUTED)
            is_right = x + 8 + self._width(name) < self._right
            self._text((x + (6 if is_right else -6), self._top + 2), name, "la" if is_right else "ra", colour=MUTED)
            self._taken.append((x - 2, self._top, x + 2, self._bottom))

    def series(self, series: Series, colour: str, shape: str) -> None:
        places = [(self._x.place(point.x), self._y.place(point.y)) for point in series.points]
        if series.is_line:
            self._line(places, colour, 2)
        for point, (x, y) in zip(series.points, places, strict=True):
            if point.error:
                above, below = self._y.place(point.y + point.error), self._y.place(point.y - point.error)
                self._line([(x, above), (x, below)], colour)
                for end in (above, below):
                    self._line([(x - 4, end), (x + 4, end)], colour)
            self._marker((x, y), colour, shape)
            self._taken.append((x - 6, y - 6, x + 6, y + 6))
            if point.label:
                self._waiting.append(((x, y), point.label, colour))

    def labels(self) -> None:
        """Beside their points, from the right to the left, at the first place that is free, on the right if none is.

        A line leads to what is not close.
        """
        for (x, y), label, colour in sorted(self._waiting, key=lambda one: (-one[0][0], one[0][1])):
            width = self._width(label)
            near = [(9, -7), (-9 - width, -7), (-width / 2, -22), (-width / 2, 8)]
            far = [(30, dy - 7.0) for step in range(18, 145, 18) for dy in (-step, step)]
            offsets = near + far
            boxes = [(x + dx, y + dy, x + dx + width, y + dy + 14) for dx, dy in offsets]
            found = next((index for index, box in enumerate(boxes) if self._is_free(box)), 0)
            left, top, right, bottom = box = boxes[found]
            self._taken.append(box)
            middle = (top + bottom) / 2
            if found >= len(near):
                self._line([(left - 3 if left > x else right + 3, middle), (x, y)], colour, 0.5)
            self._text((left, middle), label, "lm", colour=colour)

    def titles(self) -> None:
        """The chart's, the axes' and the series' names."""
        chart, (width, height) = self.chart, self.chart.size
        self._text((self._left, 18), chart.title, "lm", size=15)
        self._text(((self._left + self._right) / 2, height - 16), chart.x.label, "mm")
        label = Image.new("RGB", (_px(height), _px(20)), PAPER)
        middle = (_px(height / 2), _px(10))
        ImageDraw.Draw(label).text(middle, chart.y.label, INK, _font(12), "mm")
        turned = label.rotate(90, expand=True)
        self.image.paste(turned, (_px(6), _px((self._top + self._bottom) / 2 - height / 2)))
        x = float(self._left)
        for index, series in enumerate(chart.series if len(chart.series) > 1 else ()):
            self._marker((x + 6, 46), COLOURS[index % len(COLOURS)], SHAPES[index % len(SHAPES)])
            self._text((x + 17, 46), series.name, "lm")
            x += 17 + self._width(series.name) + 20
        assert x <= width, f"Bug: the names of {len(chart.series)} series need {x:.0f} of {width} units"

    # -- strokes ------------------------------------------------------------------------------------------------------

    def _line(self, places: Sequence[Corner], colour: str, width: float = 1) -> None:
        self._pen.line([(_px(x), _px(y)) for x, y in places], colour, _px(width), joint="curve")

    def _marker(self, place: Corner, colour: str, shape: str, radius: float = 4.5) -> None:
        x, y = place
        corners = {
            "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            "triangle": [(0, -1.15), (1.1, 0.85), (-1.1, 0.85)],
            "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        }
        if shape == "circle":
            self._pen.ellipse([_px(x - radius), _px(y - radius), _px(x + radius), _px(y + radius)], colour)
        else:
            self._pen.polygon([(_px(x + dx * radius), _px(y + dy * radius)) for dx, dy in corners[shape]], colour)

    def _text(self, place: Corner, text: str, anchor: str, colour: str = INK, size: float = 12) -> None:
        """`anchor` as Pillow has it: `la` for the left end of the top, `mm` for the middle."""
        self._pen.text((_px(place[0]), _px(place[1])), text, colour, _font(size), anchor)

    def _width(self, text: str) -> float:
        return float(_font(12).getlength(text)) / (SCALE * SMOOTH)

    def _is_free(self, box: Rectangle) -> bool:
        left, top, right, bottom = box
        is_inside = self._left < left and right < self._right + MARGIN["right"] and self._top < top < self._bottom - 14
        return is_inside and not any(left < c and a < right and top < d and b < bottom for a, b, c, d in self._taken)


def _px(units: float) -> int:
    return round(units * SCALE * SMOOTH)


def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size * SCALE * SMOOTH)
    assert isinstance(font, ImageFont.FreeTypeFont), "Bug: Pillow was built without FreeType"
    return font
