"""What acceptance probes ask: drawn pictures, and questions about them with fixed answers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from varco_runtime.bundle.settings import MediaSettings
from varco_runtime.markup.questions import ground_prompt
from varco_runtime.markup.regions import MARKUP_TOKENS, Box, Parsed, Region
from varco_runtime.markup.writer import render
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
    """A picture, and where its things are. `shows` and `count`: what it is seen as, of `probes.file.ProbePicture`."""

    name: str
    image: Image.Image
    regions: tuple[Region, ...]
    shows: str = "picture"
    count: int = 1


def draw_pictures(tile_px: int) -> list[Drawn]:
    """One picture on two tiles: shapes on its left half, words on its right half.

    It is much shorter than its grid, so that there is padding to cut off, and so that it becomes few image tokens: they
    are what probes cost most of their time on.
    """
    width, height = 2 * tile_px, max(2, tile_px * 3 // 8)
    y, x = np.mgrid[0:height, 0:width]
    background = np.stack([200 + 40 * x // width, 230 - 60 * y // height, 210 + 30 * (x + y) // (width + height)], 2)
    image = Image.fromarray(background.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    regions = [*_draw_shapes(pen, width, height), *_draw_words(pen, width, height)]
    return [Drawn("shapes and words", image, tuple(regions))]


def draw_media(tile_px: int, facts: MediaSettings) -> list[Drawn]:
    """The picture by itself and, where the checkpoint takes that, as two pictures and as a video of two frames."""
    one, *_ = drawn = draw_pictures(tile_px)
    if facts.max_images != 1:
        drawn.append(dataclasses.replace(one, name="shapes, words", shows="pictures", count=2))
    if facts.video_token is not None:
        drawn.append(dataclasses.replace(one, name="shapes, then words", shows="video", count=2))
    return drawn


def _draw_shapes(pen: ImageDraw.ImageDraw, width: int, height: int) -> Iterator[Region]:
    for name, shape, color, box in (
        ("red circle", "ellipse", (210, 30, 40), Box(0.03, 0.1, 0.2, 0.6)),
        ("blue square", "rectangle", (30, 60, 200), Box(0.28, 0.2, 0.45, 0.65)),
        ("green bar", "rectangle", (20, 140, 60), Box(0.08, 0.75, 0.4, 0.9)),
    ):
        getattr(pen, shape)(box.pixels(width, height), fill=color)
        yield Region("object", name, (box,), 0, 0)


def _draw_words(pen: ImageDraw.ImageDraw, width: int, height: int) -> Iterator[Region]:
    font = ImageFont.load_default(size=max(1, height // 4))
    for index, word in enumerate(WORDS):
        place = (width * (20 + 5 * index) // 40, height * (1 + 3 * index) // 10)
        left, top, right, bottom = pen.textbbox(place, word, font=font)
        box = tuple(round(value, 2) for value in (left / width, top / height, right / width, bottom / height))
        pen.text(place, word, font=font, fill=(40, 30, 60 + 40 * index))
        yield Region("text", word, (Box(*box),), 0, 0)


def questions(drawn: list[Drawn]) -> list[Question]:
    """One without a picture, whose error is the decoder's alone, and one about each picture."""
    chat = Question(
        "chat",
        None,
        "대한민국의 수도는 어디인가요? Answer in one sentence.",
        "대한민국의 수도는 서울입니다. Seoul lies on the Han River, and 9 million people live there.",
    )
    return [chat, *(_QUESTIONS[one.shows](index, one) for index, one in enumerate(drawn))]


def _compare(picture: int, drawn: Drawn) -> Question:
    """What two pictures have in common."""
    answer = "The first picture shows a circle, a square and a bar; the second one shows words. They share nothing."
    return Question("compare", picture, "Compare the two pictures.", answer)


def _watch(picture: int, drawn: Drawn) -> Question:
    """What happens in a video."""
    answer = "First there are a circle, a square and a bar, and then there are the words EXIT 24, MENU and OPEN."
    return Question("video", picture, "What happens in the video?", answer)


def _ground(picture: int, drawn: Drawn) -> Question:
    """What is to be seen in a picture, and where."""
    *others, last = map(_markup, drawn.regions)
    return Question(
        "ground", picture, ground_prompt("Describe this image."), f"There is a {', a '.join(others)} and a {last}."
    )


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


_QUESTIONS = {"picture": _ground, "pictures": _compare, "video": _watch}
"""By what a picture is seen as."""
