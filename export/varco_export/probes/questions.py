"""What acceptance probes ask: drawn pictures, and questions about them with fixed answers."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from varco_runtime.markup.parser import MARKUP_TOKENS, OCR_PROMPT, Box, Parsed, Region, ground_prompt, render
from varco_runtime.prompt.tokenizer import Tokenizer

WORDS = ("EXIT 24", "MENU", "OPEN")


@dataclass(frozen=True, slots=True)
class Question:
    """A probe before the model has seen it. `picture` is a position in the list of pictures."""

    task: str
    picture: int | None
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture, and where its things are."""

    name: str
    image: Image.Image
    regions: tuple[Region, ...]


def draw_pictures(tile_px: int) -> list[Drawn]:
    """Shapes on one tile and words on two, each a little shorter than its grid, so that there is padding to cut off."""
    return [_draw_shapes(tile_px, tile_px * 9 // 10), _draw_words(tile_px * 2, tile_px * 3 // 4)]


def _draw_shapes(width: int, height: int) -> Drawn:
    y, x = np.mgrid[0:height, 0:width]
    background = np.stack([200 + 40 * x // width, 230 - 60 * y // height, 210 + 30 * (x + y) // (width + height)], 2)
    image = Image.fromarray(background.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    things = (
        ("red circle", "ellipse", (210, 30, 40), Box(0.1, 0.15, 0.45, 0.55)),
        ("blue square", "rectangle", (30, 60, 200), Box(0.58, 0.3, 0.9, 0.66)),
        ("green bar", "rectangle", (20, 140, 60), Box(0.2, 0.75, 0.8, 0.88)),
    )
    for _, shape, colour, box in things:
        getattr(pen, shape)(box.pixels(width, height), fill=colour)
    regions = tuple(Region("object", name, (box,), 0, 0) for name, _, _, box in things)
    return Drawn("shapes", image, regions)


def _draw_words(width: int, height: int) -> Drawn:
    image = Image.new("RGB", (width, height), (245, 240, 225))
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=height // 5)
    regions = []
    for index, word in enumerate(WORDS):
        place = (width * (2 + 7 * index) // 40, height * (1 + 3 * index) // 10)
        left, top, right, bottom = pen.textbbox(place, word, font=font)
        box = tuple(round(value, 2) for value in (left / width, top / height, right / width, bottom / height))
        pen.text(place, word, font=font, fill=(40, 30, 60 + 40 * index))
        regions.append(Region("text", word, (Box(*box),), 0, 0))
    return Drawn("words", image, tuple(regions))


def questions(drawn: list[Drawn]) -> list[Question]:
    """One per task. The chat has no picture: its error is the decoder's alone."""
    shapes, words = drawn
    return [
        Question(
            "chat",
            None,
            "대한민국의 수도는 어디인가요? Answer in one sentence.",
            "대한민국의 수도는 서울입니다. Seoul lies on the Han River, and 9 million people live there.",
        ),
        Question(
            "ground",
            0,
            ground_prompt("Describe this image."),
            "There is a {}, a {} and a {}.".format(*map(_markup, shapes.regions)),
        ),
        Question("ocr", 1, OCR_PROMPT, "\n".join(map(_markup, words.regions))),
    ]


def _markup(region: Region) -> str:
    """A region in the words that a model would write."""
    whole = dataclasses.replace(region, start=0, end=len(region.text))
    return render(Parsed(region.text, (whole,), ()))


def encode_answer(text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of an answer, its tags as the added tokens that the tokenizer has for them."""
    ids: list[int] = []
    for piece in re.split(f"({'|'.join(MARKUP_TOKENS)})", text):
        known = tokenizer.added_token_ids.get(piece)
        ids += [known] if known is not None else tokenizer.encode_plain(piece) if piece else []
    return ids
