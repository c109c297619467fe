"""A picture as the trainer sees it: tiles, token plan, one packed sequence of questions and answers, and what is where.

The sequence is the picture's tokens once, then several questions about it; each question sees the picture and itself
(its `segment`), so one pass through the picture teaches several answers. Positions restart behind the picture.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from training import tiles
from training.lexicon import CHARACTERS, COLOURS, SHAPES
from training.pictures import MAX_WORDS, Picture
from training.tasks import Task, tasks
from training.tokenizer import IM_END, IM_START

Array = npt.NDArray[np.int64]

IGNORE = -100
MAX_SEQUENCE = 112  # tokens of questions and answers behind one picture; tasks that do not fit are left out
CHARACTER_IDS = {character: i + 1 for i, character in enumerate(CHARACTERS)}
NUM_CHARACTERS = len(CHARACTERS) + 1  # 0: no character here
NUM_INDICES = 9  # 0: none, then the position in the word
NUM_OBJECTS = 9  # 0: none, 1-4 words, 5-8 shapes
NUM_LOOKS = 1 + len(SHAPES) * len(COLOURS)  # 0: no shape
NUM_BINS = 101  # of a coordinate, as the answers spell it
PROBES = np.array([-2 / 3, 0.0, 2 / 3], np.float32)  # where in a patch characters are looked for


@dataclass(slots=True)
class Where:
    """What stands at some points; the last axis of the first two holds three probes from left to right."""

    character: Array  # [P, 3]
    index: Array  # [P, 3]
    object: Array  # [P]
    look: Array  # [P]
    box: Array  # [P, 4] bins


@dataclass(slots=True)
class Sample:
    """One training picture."""

    pixels: npt.NDArray[np.uint8]  # [T, 114, 114, 3]
    plan: tiles.Plan
    patches: Where  # T * 64 points; boxes relative to the tile
    tokens: Where  # the picture's N tokens; boxes relative to the picture
    ids: Array  # [S] of the questions and answers
    targets: Array  # [S] the next id inside answers, else IGNORE
    positions: Array  # [S] counted from the end of the picture
    segments: Array  # [S] 1, 2, ...
    sources: Array  # [S] the object the next id tells about, 0: none
    indices: Array  # [S] and its character, 0: none


def _bins(boxes: npt.NDArray[np.float64]) -> Array:
    bins: Array = np.rint(boxes.clip(0, 1) * (NUM_BINS - 1)).astype(np.int64)
    return bins


def look_up(picture: Picture, points: npt.NDArray[np.float32], reach: npt.NDArray[np.float32]) -> Where:
    """Return what stands at points [P, 2] that each speak for an area of half-size `reach` [P, 2]."""
    count = len(points)
    x = points[:, None, 0] + PROBES * reach[:, None, 0]  # [P, 3]
    y = points[:, 1]
    where = Where(
        character=np.zeros((count, 3), np.int64),
        index=np.zeros((count, 3), np.int64),
        object=np.zeros(count, np.int64),
        look=np.zeros(count, np.int64),
        box=np.full((count, 4), IGNORE, np.int64),
    )
    nearest = np.full(count, np.inf)
    for source, word in enumerate(picture.words, 1):
        middle, half = (word.box[1] + word.box[3]) / 2, (word.box[3] - word.box[1]) / 2
        distance = np.abs(y - middle)
        row = (distance <= np.maximum(half, reach[:, 1] * 1.02)) & (distance < nearest)
        inside = row[:, None] & (x >= word.edges[0]) & (x < word.edges[-1])  # [P, 3]
        place = np.searchsorted(word.edges, x, side="right")
        ids = np.array([0] + [CHARACTER_IDS[character] for character in word.text] + [0])
        hit = inside.any(1)
        cell = (word.edges[-1] - word.edges[0]) / len(word.text) / np.maximum(reach[:, :1], 1e-6) * (tiles.PATCH_PX / 2)
        legible = cell >= (6.0 if word.text.isascii() else 11.0)
        where.character[hit] = np.where(inside, np.where(legible, ids[place], IGNORE), 0)[hit]
        where.index[hit] = np.where(inside, np.where(legible, place, IGNORE), 0)[hit]
        where.object[hit] = source
        where.box[hit] = _bins(np.array(word.box))
        nearest[hit] = distance[hit]
    for source, shape in enumerate(picture.shapes, MAX_WORDS + 1):
        x1, y1, x2, y2 = shape.box
        hit = (points[:, 0] >= x1) & (points[:, 0] < x2) & (y >= y1) & (y < y2)
        where.object[hit] = source
        where.look[hit] = 1 + SHAPES.index(shape.shape) * len(COLOURS) + list(COLOURS).index(shape.colour)
        where.box[hit] = _bins(np.array(shape.box))
    return where


def make(picture: Picture, tokenizer: Tokenizer, rng: random.Random) -> Sample:
    """Return the sample of a picture, its questions drawn from `rng`."""
    plan = tiles.plan(*picture.image.size)
    count = plan.num_tiles
    patches = look_up(picture, plan.patch_points.reshape(-1, 2), np.repeat(plan.patch_reach, tiles.PATCHES, 0))
    tokens = look_up(picture, plan.token_points, plan.token_reach)
    _localise(picture, plan, patches)
    crowded = len(picture.words) > MAX_WORDS
    asked = [] if crowded else tasks(picture, rng)
    if crowded:
        for where in (patches, tokens):
            where.object[where.object > MAX_WORDS] = IGNORE
    ids, targets, positions, segments, sources, indices = _sequence(asked, tokenizer, rng)
    assert len(patches.object) == count * tiles.PATCHES
    return Sample(tiles.cut(picture.image), plan, patches, tokens, ids, targets, positions, segments, sources, indices)


def _localise(picture: Picture, plan: tiles.Plan, patches: Where) -> None:
    """Make the labels of patches what a tile alone can know: boxes clipped to it, no order of words beyond it."""
    grid = np.arange(len(patches.object)) // tiles.PATCHES
    boxes = np.zeros((max(NUM_OBJECTS, len(picture.words) + 1), 4))
    for source, word in enumerate(picture.words, 1):
        boxes[source] = word.box
    for source, shape in enumerate(picture.shapes, MAX_WORDS + 1):
        boxes[source] = shape.box
    (left, top), (width, height) = plan.offset, plan.resized
    for tile in range(1, plan.num_tiles):
        row, column = divmod(tile - 1, plan.grid[1])
        here = grid == tile
        origin = np.array([left - column * tiles.TILE_PX, top - row * tiles.TILE_PX] * 2)
        local = (boxes * [width, height, width, height] + origin) / tiles.TILE_PX
        cut_left = local[:, 0] < -0.02
        patches.box[here] = np.where(patches.object[here, None] > 0, _bins(local)[patches.object[here]], IGNORE)
        index = patches.index[here]
        patches.index[here] = np.where(cut_left[patches.object[here]][:, None] & (index > 0), IGNORE, index)
    if plan.grid != (1, 1):
        patches.object[grid > 0] = IGNORE


def encode(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a text."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def question_text(question: str, first: bool) -> str:
    """Return what stands between the picture (or the last answer) and the answer."""
    opening = "\n" if first else f"\n{IM_START}user\n"
    return f"{opening}{question}{IM_END}\n{IM_START}assistant\n"


def prefix_text() -> str:
    """Return what stands before the picture."""
    return f"{IM_START}user\n"


def _sequence(asked: list[Task], tokenizer: Tokenizer, rng: random.Random) -> tuple[Array, ...]:
    ids: list[int] = []
    targets: list[int] = []
    positions: list[int] = []
    segments: list[int] = []
    sources: list[int] = []
    indices: list[int] = []
    segment, start, end = 0, 0, tokenizer.get_vocab()[IM_END]
    for task in asked:
        first = segment == 0 or rng.random() < 0.75
        segment += first
        question = encode(question_text(task.question, first), tokenizer)
        encoding = tokenizer.encode(task.text, add_special_tokens=False)
        owner = [piece for piece in task.answer for _ in piece.text]
        owners = [owner[end - 1] for _, end in encoding.offsets]
        answer = [*encoding.ids, end]
        turn = question + answer
        if ids and len(ids) + len(turn) > MAX_SEQUENCE:
            segment -= first
            continue
        start = 0 if first else start
        ids += turn
        targets += [IGNORE] * (len(question) - 1) + answer + [IGNORE]
        sources += [0] * (len(question) - 1) + [piece.source for piece in owners] + [0, 0]
        indices += [0] * (len(question) - 1) + [piece.index for piece in owners] + [0, 0]
        positions += range(start, start + len(turn))
        segments += [segment] * len(turn)
        start += len(turn)
    return tuple(np.array(values, np.int64) for values in (ids, targets, positions, segments, sources, indices))
