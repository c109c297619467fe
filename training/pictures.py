"""Pictures with their ground truth, drawn from an integer seed: `draw(seed)` is a pure function.

A picture holds words on lines, coloured shapes, or both. It is composed on a canvas of the grid it will be cut into
(1x1 to 2x2 tiles of 114 px) and drawn at a scale of 0.75 to 2 of that, because users' pictures fit no canvas.
Training draws seeds below `HELD_OUT`; `held_out_seeds` starts there, so no held-out picture is ever trained on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from training.lexicon import COLOURS, DIGITS, HANGUL_WORDS, LATIN, LATIN_WORDS, SHAPES, SYLLABLES
from training.tiles import GRIDS, TILE_PX, best_grid
from training.typefaces import HANGUL_TYPEFACES, LATIN_TYPEFACES, advance_px, typeface

HELD_OUT = 1 << 48
MAX_WORDS = 4
MAX_SHAPES = 4
MAX_PAGE_WORDS = 16

Box = tuple[float, float, float, float]  # x1, y1, x2, y2, normalised to the picture
Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Word:
    """A word, the box of its ink, and where each character's cell ends (`edges`, one more than characters)."""

    text: str
    box: Box
    edges: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """A coloured shape and its box."""

    colour: str
    shape: str
    box: Box

    @property
    def name(self) -> str:
        """What one calls it, e.g. `red circle`."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and all that is on it: words in reading order, shapes from left to right."""

    seed: int
    grid: tuple[int, int]
    image: Image.Image
    words: tuple[Word, ...]
    shapes: tuple[Shape, ...]


def held_out_seeds(count: int, start: int = 0) -> range:
    """Return seeds that training never draws."""
    return range(HELD_OUT + start, HELD_OUT + start + count)


def training_seeds(stream: int, start: int = 0) -> Iterator[int]:
    """Yield the endless seeds of one training stream (a worker of a stage); streams do not overlap."""
    first = stream << 28
    for offset in range(start, 1 << 28):
        seed = first + offset
        assert 0 <= seed < HELD_OUT, "Bug: a training stream ran into the held-out seeds"
        yield seed


def draw(seed: int, grid: tuple[int, int] | None = None, content: str | None = None) -> Picture:
    """Draw the picture of a seed; `grid` and `content` narrow what is drawn.

    `content` is `words`, `shapes`, `both`, or `page`: as many words as fit, which only the tower's training reads.
    """
    rng = random.Random(seed)
    drawn_grid = rng.choices(GRIDS, (32, 17, 17, 34))[0]
    drawn_content = rng.choices(("words", "shapes", "both"), (68, 18, 14))[0]
    grid, content = grid or drawn_grid, content or drawn_content
    size, scale = _size(rng, grid)
    image, paper = _background(rng, size)
    page = _Page(rng, image, paper, scale, grid)
    words: tuple[Word, ...] = ()
    shapes: tuple[Shape, ...] = ()
    if content == "words":
        words = page.write(rng.choices((1, 2, 3, 4), (20, 30, 30, 20))[0], 0, size[1])
    elif content == "page":
        words = page.write(MAX_PAGE_WORDS, 0, size[1])
    elif content == "shapes":
        shapes = page.place_shapes(rng.choices((1, 2, 3, 4), (20, 30, 30, 20))[0], 0, size[1])
    else:
        top, middle, bottom = 0, round(size[1] * rng.uniform(0.4, 0.6)), size[1]
        upper, lower = rng.sample(((top, middle), (middle, bottom)), 2)
        words = page.write(rng.choice((1, 2)), *upper)
        shapes = page.place_shapes(rng.choice((1, 2, 2, 3)), *lower)
    return Picture(seed, grid, image, words, shapes)


def _size(rng: random.Random, grid: tuple[int, int]) -> tuple[tuple[int, int], float]:
    """Return a width and height that are cut into this grid, and their scale relative to the grid's canvas."""
    height, width = grid[0] * TILE_PX, grid[1] * TILE_PX
    ratio_w, ratio_h = rng.choice(((1.0, 1.0), (1.0, 1.0), (rng.uniform(0.8, 1.0), 1.0), (1.0, rng.uniform(0.8, 1.0))))
    scale = 1.0 if rng.random() < 0.5 else rng.choice((rng.uniform(0.75, 1.0), rng.uniform(1.0, 2.0)))
    for w, h, s in ((ratio_w, ratio_h, scale), (1.0, 1.0, scale), (ratio_w, ratio_h, 1.0)):
        size = round(width * w * s), round(height * h * s)
        if best_grid(*size) == grid:
            return size, s
    return (width, height), 1.0


# --- background -----------------------------------------------------------------------------------------------------


@cache
def _noise() -> np.ndarray:
    """Return a bank of noise, [1024, 1024, 1] int8, from which every picture cuts its grain."""
    return np.random.default_rng(7).normal(0, 1, (1024, 1024, 1)).clip(-3, 3).astype(np.float32)


def _luma(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _background(rng: random.Random, size: tuple[int, int]) -> tuple[Image.Image, Colour]:
    """Return a plain, graded, grainy or panelled ground and its mean colour."""
    width, height = size
    base = _any_colour(rng)
    kind = rng.random()
    if kind < 0.45:
        return Image.new("RGB", size, base), base
    if kind < 0.6:  # a panel inside a frame, as on a sign
        image = Image.new("RGB", size, _any_colour(rng))
        inset = max(1, round(min(size) * rng.uniform(0.01, 0.03)))
        ImageDraw.Draw(image).rectangle((inset, inset, width - 1 - inset, height - 1 - inset), fill=base)
        return image, base
    slope = rng.uniform(8, 40)
    ramp = np.linspace(-slope, slope, width, dtype=np.float32)[None, :, None] * rng.uniform(-1, 1)
    ramp = ramp + np.linspace(-slope, slope, height, dtype=np.float32)[:, None, None] * rng.uniform(-1, 1)
    if kind > 0.8:
        x, y = rng.randrange(1024 - width), rng.randrange(1024 - height)
        ramp = ramp + _noise()[y : y + height, x : x + width] * rng.uniform(2, 9)
    pixels = np.clip(np.asarray(base, np.float32) + ramp, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels), base


def _any_colour(rng: random.Random) -> Colour:
    """Return a colour: often light, sometimes dark, sometimes strong."""
    kind = rng.random()
    if kind < 0.5:
        return (rng.randint(190, 255), rng.randint(190, 255), rng.randint(190, 255))
    if kind < 0.75:
        return (rng.randint(0, 70), rng.randint(0, 70), rng.randint(0, 70))
    return (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))


def _ink(rng: random.Random, paper: Colour) -> Colour:
    """Return a colour that stands out from the paper."""
    for _ in range(12):
        ink = _any_colour(rng)
        if abs(_luma(ink) - _luma(paper)) > 95:
            return ink
    return (10, 10, 10) if _luma(paper) > 127 else (250, 250, 250)


# --- words and shapes -----------------------------------------------------------------------------------------------


def random_text(rng: random.Random) -> tuple[str, bool]:
    """Return a word and whether it is Hangul: half from the lexicon, half random, never letters mixed with digits."""
    kind, lexicon = rng.random(), rng.random() < 0.5
    if kind < 0.5:
        length = rng.choices((1, 2, 3, 4), (4, 16, 38, 42))[0]
        if length == 1:  # a lone I or O cannot be told from 1 or 0
            return rng.choice(LATIN.replace("I", "").replace("O", "")), False
        return (rng.choice(LATIN_WORDS) if lexicon else "".join(rng.choices(LATIN, k=length))), False
    if kind < 0.72:
        length = rng.choices((1, 2, 3, 4), (10, 28, 32, 30))[0]
        return (rng.choice(DIGITS[2:]) if length == 1 else "".join(rng.choices(DIGITS, k=length))), False
    length = rng.choices((1, 2, 3, 4), (10, 40, 35, 15))[0]
    return (rng.choice(HANGUL_WORDS) if lexicon else "".join(rng.choices(SYLLABLES, k=length))), True


@dataclass(slots=True)
class _Setting:
    """A word set in a typeface, before it has a place."""

    text: str
    typeface: str
    size_px: int
    width_px: float
    ink: Box  # of the ink, relative to the pen

    @classmethod
    def of(cls, text: str, name: str, size_px: int) -> _Setting:
        font = typeface(name, size_px)
        width = sum(advance_px(name, size_px, character) for character in text)
        return cls(text, name, size_px, width, font.getbbox(text))

    @property
    def height_px(self) -> float:
        return self.ink[3] - self.ink[1]


class _Page:
    """One picture being drawn."""

    def __init__(self, rng: random.Random, image: Image.Image, paper: Colour, scale: float, grid: tuple[int, int]):
        self.rng, self.image, self.paper, self.scale = rng, image, paper, scale
        self.pen = ImageDraw.Draw(image)
        self.large = 1.25 if grid == (2, 2) else 1.0
        self.names: dict[bool, str] = {}

    def write(self, count: int, top: float, bottom: float) -> tuple[Word, ...]:
        """Write up to `count` words on lines between two heights, in reading order."""
        rng, width = self.rng, self.image.width
        ink = _ink(rng, self.paper)
        lines: list[list[_Setting]] = []
        gap, used = 4.0 * self.scale, 0.0
        for _ in range(count):
            setting = self._set(width - 6 * self.scale)
            space = 0.55 * setting.size_px
            if lines and rng.random() < (0.5 if count <= MAX_WORDS else 0.95):
                line = lines[-1]
                taken = sum(word.width_px for word in line) + space * len(line)
                if taken + setting.width_px + space < width - 6 * self.scale:
                    grown = max(0.0, setting.height_px - max(word.height_px for word in line))
                    if used + grown < bottom - top:
                        line.append(setting)
                        used += grown
                        continue
            if lines and used + setting.height_px + 2 * gap > bottom - top:
                break
            lines.append([setting])
            used += setting.height_px + gap
        words: list[Word] = []
        slack = max(0.0, bottom - top - used - gap)
        cuts = sorted(rng.uniform(0, slack) for _ in lines)
        y = top + gap
        for index, line in enumerate(lines):
            y_line = y + cuts[index]
            height = max(word.height_px for word in line)
            if rng.random() < 0.3:
                ink = _ink(rng, self.paper)
            words += self._write_line(line, y_line, height, ink)
            y += height + gap
        return tuple(words)

    def _set(self, room_px: float) -> _Setting:
        """Choose a word, a typeface and a size that fits."""
        rng = self.rng
        text, hangul = random_text(rng)
        if hangul not in self.names or rng.random() < 0.3:
            self.names[hangul] = rng.choice(HANGUL_TYPEFACES if hangul else LATIN_TYPEFACES)
        size = (rng.uniform(20, 28) if hangul else rng.uniform(16, 26)) * self.large * self.scale
        setting = _Setting.of(text, self.names[hangul], round(size))
        while setting.width_px > room_px:
            size *= 0.93 * min(1.0, 1.05 * room_px / setting.width_px)
            setting = _Setting.of(text, setting.typeface, max(6, round(size)))
        return setting

    def _write_line(self, line: list[_Setting], y: float, height: float, ink: Colour) -> list[Word]:
        rng, (width, full) = self.rng, self.image.size
        spaces = [0.0] + [0.55 * word.size_px for word in line[1:]]
        spare = width - 4 * self.scale - sum(spaces) - sum(word.width_px for word in line)
        cuts = sorted(rng.uniform(0, max(0.0, spare)) for _ in line)
        x, words = 2.0 * self.scale, []
        for index, word in enumerate(line):
            x += spaces[index]
            left = round(x + cuts[index])
            pen_y = round(y + (height - word.height_px) / 2 - word.ink[1])
            self.pen.text((left, pen_y), word.text, fill=ink, font=typeface(word.typeface, word.size_px))
            edges = [float(left)]
            for character in word.text:
                edges.append(edges[-1] + advance_px(word.typeface, word.size_px, character))
            box = (left + word.ink[0], pen_y + word.ink[1], left + word.ink[2], pen_y + word.ink[3])
            words.append(Word(word.text, _normalised(box, width, full), tuple(edge / width for edge in edges)))
            x += word.width_px
        return words

    def place_shapes(self, count: int, top: int, bottom: int) -> tuple[Shape, ...]:
        """Draw shapes that do not touch, with left edges that differ, and return them from left to right."""
        rng, width, height = self.rng, self.image.width, self.image.height
        placed: list[Shape] = []
        boxes: list[Box] = []
        kinds = [(rng.choice(self._shape_colours()), rng.choice(SHAPES)) for _ in range(count)]
        if count > 1 and rng.random() < 0.35:
            kinds[1] = kinds[0]
        for colour, shape in kinds:
            for _ in range(20):
                side = rng.uniform(22, 40) * self.large * self.scale
                side = min(side, bottom - top - 2.0, width - 2.0)
                x, y = rng.uniform(1, width - 1 - side), rng.uniform(top + 1, bottom - 1 - side)
                if all(
                    (x > b[2] + 2 or b[0] > x + side + 2 or y > b[3] + 2 or b[1] > y + side + 2)
                    and abs(x - b[0]) > 0.05 * width
                    for b in boxes
                ):
                    box = self._draw_shape(shape, x, y, side, COLOURS[colour])
                    boxes.append(box)
                    placed.append(Shape(colour, shape, _normalised(box, width, height)))
                    break
        return tuple(sorted(placed, key=lambda item: item.box[0]))

    def _shape_colours(self) -> tuple[str, ...]:
        far = [name for name, colour in COLOURS.items() if math.dist(colour, self.paper) > 130]
        return tuple(far)

    def _draw_shape(self, shape: str, x: float, y: float, side: float, colour: Colour) -> Box:
        red, green, blue = (min(255, max(0, c + self.rng.randint(-12, 12))) for c in colour)
        colour = (red, green, blue)
        x, y, side = round(x), round(y), round(side)
        box: Box = (x, y, x + side, y + side)
        if shape == "circle":
            self.pen.ellipse(box, fill=colour)
        elif shape == "square":
            self.pen.rectangle(box, fill=colour)
        else:
            corners = [(x + u * side, y + v * side) for u, v in _OUTLINES[shape]]
            self.pen.polygon(corners, fill=colour)
            box = (
                min(u for u, _ in corners),
                min(v for _, v in corners),
                max(u for u, _ in corners),
                max(v for _, v in corners),
            )
        return box[0], box[1], box[2] + 1, box[3] + 1


def _star() -> list[tuple[float, float]]:
    points = []
    for i in range(10):
        radius = 0.5 if i % 2 == 0 else 0.21
        angle = math.pi * (i / 5 - 0.5)
        points.append((0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)))
    return points


_OUTLINES = {
    "triangle": [(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)],
    "diamond": [(0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)],
    "star": _star(),
}


def _normalised(box: Box, width: int, height: int) -> Box:
    x1, y1, x2, y2 = box
    return max(0.0, x1 / width), max(0.0, y1 / height), min(1.0, x2 / width), min(1.0, y2 / height)
