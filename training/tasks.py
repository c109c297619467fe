"""Questions about a picture and their answers in VARCO's markup, made from the picture's ground truth.

An answer is a list of pieces: the text of a piece, and which object (and which of its characters) it was read from.
The pieces' objects guide the training; joined, their texts are what the model should say.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from training.lexicon import NUMBER_WORDS
from training.pictures import MAX_WORDS, Box, Picture, Shape, Word

OCR = "<ocr>"
GROUND = ("<gro>\nDescribe the image.", "<gro>\nDescribe this image.", "<gro>\nDescribe the image in detail.")
DESCRIBE = ("Describe this image.", "Describe the image.", "What is in the image?")
COUNT_WORDS, COUNT_SHAPES = "How many words are there?", "How many shapes are there?"
REFER = {  # subject -> ways to ask; `{o}` is the object's markup
    "colour": ("What colour is {o}?", "{o} What colour is it?", "What color is {o}?"),
    "shape": ("What shape is {o}?", "{o} What shape is it?"),
    "word": ("What does {o} say?", "{o} What does it say?"),
    "name": ("What is {o}?", "{o} What is it?"),
}
OBJECT_NAMES = ("this", "this", "this", "this object", "the object", "it")


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of an answer; `source` is 0 or the object it tells about, `index` the 1-based character or 0."""

    text: str
    source: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """A question, its answer, and what it tests (`ocr`, `ground`, `refer`, `chat`)."""

    kind: str
    question: str
    answer: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """The answer as text."""
        return "".join(piece.text for piece in self.answer)


def number(value: float) -> str:
    """Return a coordinate with up to two decimals, trailing zeros dropped."""
    return f"{min(1.0, max(0.0, value)):.2f}".rstrip("0").rstrip(".")


def quad(box: Box) -> str:
    """Return a box as `x1, y1, x2, y2`."""
    return ", ".join(map(number, box))


def _box_pieces(box: Box, source: int) -> list[Piece]:
    pieces = []
    for i, value in enumerate(box):
        pieces += [Piece(", ")] if i else []
        pieces.append(Piece(number(value), source))
    return pieces


def _spell(word: Word, source: int) -> list[Piece]:
    return [Piece(character, source, index + 1) for index, character in enumerate(word.text)]


def ocr(picture: Picture) -> Task:
    """Return the task of reading every word."""
    pieces: list[Piece] = []
    for source, word in enumerate(picture.words, 1):
        pieces += [Piece("\n")] if pieces else []
        pieces += [Piece("<char>"), *_spell(word, source), Piece("</char>"), Piece("<bbox>")]
        pieces += [*_box_pieces(word.box, source), Piece("</bbox>")]
    return Task("ocr", OCR, tuple(pieces) or (Piece("There is no text."),))


def _sentence(picture: Picture, grounded: bool) -> list[Piece]:
    """Return `There is a red circle and two blue squares.`, with or without boxes."""
    numbered = list(enumerate(picture.shapes, MAX_WORDS + 1))
    names = list(dict.fromkeys(shape.name for shape in picture.shapes))
    if not names:
        return [Piece("There is no shape.")]
    groups = [[(source, shape) for source, shape in numbered if shape.name == name] for name in names]
    pieces = [Piece("There is" if len(groups[0]) == 1 else "There are")]
    for position, group in enumerate(groups):
        if position:
            pieces.append(Piece(" and " if position == len(groups) - 1 else ", "))
        else:
            pieces.append(Piece(" "))
        pieces += _group(group, grounded)
    return [*pieces, Piece(".")]


def _group(group: list[tuple[int, Shape]], grounded: bool) -> list[Piece]:
    count, (source, shape) = len(group), group[0]
    article = NUMBER_WORDS[count] if count > 1 else "an" if shape.name[0] == "o" else "a"
    plural = "s" if count > 1 else ""
    if not grounded:
        return [Piece(article), Piece(f" {shape.colour}", source), Piece(f" {shape.shape}{plural}", source)]
    pieces = [Piece(article), Piece(" "), Piece("<obj>"), Piece(shape.colour, source)]
    pieces += [Piece(f" {shape.shape}{plural}", source), Piece("</obj>"), Piece("<bbox>")]
    for position, (place, item) in enumerate(group):
        pieces += [Piece("<delim>")] if position else []
        pieces += _box_pieces(item.box, place)
    return [*pieces, Piece("</bbox>")]


def ground(picture: Picture, rng: random.Random) -> Task:
    """Return the task of describing the shapes with their boxes."""
    return Task("ground", rng.choice(GROUND), tuple(_sentence(picture, grounded=True)))


def refer(picture: Picture, rng: random.Random, source: int | None = None) -> Task:
    """Return a question about one object, pointed at with a box that is a little off."""
    sources = [*range(1, len(picture.words) + 1), *range(MAX_WORDS + 1, MAX_WORDS + 1 + len(picture.shapes))]
    source = source or rng.choice(sources)
    target = picture.words[source - 1] if source <= MAX_WORDS else picture.shapes[source - MAX_WORDS - 1]
    markup = f"<obj>{rng.choice(OBJECT_NAMES)}</obj><bbox>{_pointed(target.box, rng)}</bbox>"
    answer: list[Piece]
    if isinstance(target, Word):
        subject, answer = rng.choices(("word", "name"), (5, 1))[0], _spell(target, source)
    else:
        subject = rng.choices(("colour", "shape", "name"), (3, 3, 2))[0]
        answer = [Piece(getattr(target, subject), source)] if subject != "name" else []
        answer = answer or [Piece(target.colour, source), Piece(f" {target.shape}", source)]
    return Task("refer", rng.choice(REFER[subject]).format(o=markup), tuple(answer))


def _pointed(box: Box, rng: random.Random) -> str:
    if rng.random() < 0.4:
        return quad(box)
    moved = [min(1.0, max(0.0, value + rng.uniform(-0.012, 0.012))) for value in box]
    if rng.random() < 0.5:
        return ", ".join(f"{value:.3f}".rstrip("0").rstrip(".") for value in moved)
    return ", ".join(map(number, moved))


def chat(picture: Picture, rng: random.Random) -> Task:
    """Return a plain question: a description or a count."""
    kind = rng.random()
    if kind < 0.25:
        return Task("chat", COUNT_WORDS, (Piece(str(len(picture.words))),))
    if kind < 0.5:
        return Task("chat", COUNT_SHAPES, (Piece(str(len(picture.shapes))),))
    pieces = _sentence(picture, grounded=False) if picture.shapes else []
    if picture.words:
        pieces += [Piece(" ")] if pieces else []
        pieces.append(Piece("The text says"))
        for source, word in enumerate(picture.words, 1):
            if 1 < source < len(picture.words):
                pieces.append(Piece(", "))
            else:
                pieces += [Piece(" and"), Piece(" ")] if source > 1 else [Piece(" ")]
            pieces += _spell(word, source)
        pieces.append(Piece("."))
    return Task("chat", rng.choice(DESCRIBE), tuple(pieces or _sentence(picture, grounded=False)))


def tasks(picture: Picture, rng: random.Random) -> list[Task]:
    """Return what training asks about a picture: the main task first, then a few more."""
    asked: list[Task] = []
    if picture.words or rng.random() < 0.08:
        asked.append(ocr(picture))
    if picture.shapes or rng.random() < 0.04:
        asked.append(ground(picture, rng))
    asked.append(refer(picture, rng))
    if picture.shapes or rng.random() < 0.5:
        asked.append(refer(picture, rng))
    if rng.random() < (0.3 if picture.shapes else 0.12):
        asked.append(chat(picture, rng))
    return asked


def corpus() -> list[str]:
    """Return texts that show the tokenizer which words are common."""
    texts = ["user", "assistant", "system"] * 40 + [*GROUND, *DESCRIBE, COUNT_WORDS, COUNT_SHAPES] * 4
    texts += [way.format(o="") for ways in REFER.values() for way in ways] * 4 + list(OBJECT_NAMES) * 4
    texts += [
        "There is a",
        "There are two",
        "three",
        "four",
        " and",
        " an",
        "The text says",
        "no shape.",
        "no text.",
    ] * 8
    return texts


__all__ = ["Piece", "Task", "chat", "corpus", "ground", "number", "ocr", "quad", "refer", "tasks"]
