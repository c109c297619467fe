"""Calibration without a folder: pictures that are drawn and texts that are put together, for every task.

A picture has a background, shapes, and words in both languages at known places, so that each task's answer is known:
read the words, describe and point, tell about a thing that is pointed at. Between them stand samples of text alone.
Everything is made of one seed, so two runs see the same.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from importlib.resources import as_file, files

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from varco_export.quantize.calibration import Sample
from varco_export.quantize.texts import KOREAN_WORDS, WORDS, texts_of
from varco_runtime.answer.draw import FONT_FILE
from varco_runtime.markup.questions import OCR_PROMPT, ground_prompt, refer_prompt
from varco_runtime.markup.regions import Box, Parsed, Region
from varco_runtime.markup.writer import render

_SHAPES = ("ellipse", "rectangle")
_COLORS = {
    "red": (205, 40, 45),
    "blue": (40, 70, 200),
    "green": (30, 140, 70),
    "yellow": (235, 200, 40),
    "black": (25, 25, 30),
    "white": (245, 245, 245),
}
_NAMES = {"ellipse": "circle", "rectangle": "square"}
_REQUESTS = (
    "Continue the text.",
    "Write something about this.",
    "Summarize the following and go on.",
    "다음 글을 이어서 써 주세요.",
    "아래 내용을 자세히 설명해 주세요.",
)


def drawn_samples(markup_tokens: Sequence[str], num_samples: int, tile_px: int, seed: int = 0) -> list[Sample]:
    """Return samples that need no folder: half with a picture, half of text alone.

    Args:
        markup_tokens: Tokens that the model knows; tasks that need others are left out.
        num_samples: How many.
        tile_px: The side of the vision tower's square, by which pictures are measured.
        seed: What they are made of.
    """
    rng = random.Random(seed)
    samples: list[Sample] = []
    while len(samples) < num_samples:
        image, regions = _draw(rng, tile_px)
        for prompt, answer in _tasks(rng, regions, markup_tokens):
            samples.append(Sample(image, prompt, answer, f"drawn sample {len(samples)}"))
            text = texts_of(rng, rng.randint(3, 8))
            samples.append(Sample(None, rng.choice(_REQUESTS), text, f"drawn sample {len(samples)}"))
    return samples[:num_samples]


def _draw(rng: random.Random, tile_px: int) -> tuple[Image.Image, list[Region]]:
    """Return a picture of one to two tiles a side, with shapes in its upper half and words in its lower one."""
    width, height = (max(16, int(tile_px * rng.uniform(0.7, 1.9))) for _ in range(2))
    noise = np.random.RandomState(rng.randrange(1 << 32)).randint(0, 256, (rng.randint(2, 7), rng.randint(2, 7), 3))
    mixed = (noise * rng.uniform(0.1, 0.5) + rng.choice([10, 60, 120])).astype(np.uint8)
    image = Image.fromarray(mixed).resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    regions: list[Region] = []
    for index in range(rng.randint(1, 3)):
        box = _place(rng, index / 3, 0.05)
        shape, color = rng.choice(_SHAPES), rng.choice(list(_COLORS))
        getattr(pen, shape)(box.pixels(width, height), fill=_COLORS[color])
        regions.append(Region("object", f"{color} {_NAMES[shape]}", (box,), 0, 0))
    for index in range(rng.randint(1, 4)):
        word = rng.choice(KOREAN_WORDS if rng.random() < 0.5 else [one.upper() for one in WORDS])
        font = _font(max(6, height // rng.randint(9, 14)))
        at = (int(width * rng.uniform(0.02, 0.5)), int(height * (0.5 + 0.11 * index)))
        pen.text(at, word, font=font, fill=rng.choice(list(_COLORS.values())))
        left, top, right, bottom = pen.textbbox(at, word, font=font)
        corners = (left / width, top / height, min(1, right / width), min(1, bottom / height))
        regions.append(Region("text", word, (Box(*(round(corner, 3) for corner in corners)),), 0, 0))
    return image, regions


def _place(rng: random.Random, left: float, top: float) -> Box:
    x, y = left + rng.uniform(0.01, 0.08), top + rng.uniform(0, 0.1)
    corners = (x, y, x + rng.uniform(0.1, 0.22), y + rng.uniform(0.12, 0.3))
    return Box(*(round(corner, 3) for corner in corners))


def _font(size: int) -> ImageFont.FreeTypeFont:
    with as_file(files("varco_runtime.fonts") / FONT_FILE) as path:
        return ImageFont.truetype(str(path), size)


def _tasks(rng: random.Random, regions: list[Region], markup_tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield questions about a picture with their answers, one for every task that the model knows."""
    objects = [region for region in regions if region.kind == "object"]
    words = [region for region in regions if region.kind == "text"]
    said = ", ".join(f"a {region.text}" for region in objects)
    read = ", ".join(region.text for region in words)
    yield (
        rng.choice(("Describe this image.", "What can you see?", "이 이미지를 설명해 주세요.")),
        f"The picture shows {said}. Below, it reads: {read}. {texts_of(rng, 1)}",
    )
    known = set(markup_tokens)
    if {"<ocr>", "<char>", "<bbox>"} <= known:
        yield OCR_PROMPT, "\n".join(map(_markup, words))
    if {"<gro>", "<obj>", "<bbox>"} <= known:
        yield ground_prompt("Describe the image in detail."), f"There is {', and '.join(map(_markup, objects))}."
    if {"<obj>", "<bbox>"} <= known:
        chosen = rng.choice(objects)
        template, name = rng.choice((("{object}은 무엇인가요?", "이 물건"), ("What is {object}?", "this object")))
        yield refer_prompt(template, name, chosen.boxes[0]), f"It is a {chosen.text}. {texts_of(rng, 1)}"


def _markup(region: Region) -> str:
    """Return a region in the words that a model would write."""
    whole = dataclasses.replace(region, start=0, end=len(region.text))
    return render(Parsed(region.text, (whole,), ()))
