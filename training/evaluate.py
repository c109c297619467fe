"""Measure how well a model reads held-out pictures, through any function `answer(image, prompt) -> text`.

`python -m training.evaluate models/varco-tiny --pictures 200` measures a checkpoint through transformers. Figures:

- `word_accuracy`: words of `<ocr>` that are spelled right, of all words in the pictures (each said word counts once);
- `character_error_rate`: edits between said and true words in reading order, per true character;
- `mean_iou`: of the boxes of words that are spelled right;
- `grounding_accuracy`: shapes named right with a box of IoU above 0.5, of all shapes (`<gro>`);
- `referring_accuracy`: questions about one object answered to the letter;
- `well_formed`: answers to `<ocr>` and `<gro>` whose markup parses completely.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from training.pictures import Box, Picture, draw, held_out_seeds
from training.tasks import GROUND, OCR, refer

Answer = Callable[[Image.Image, str], str]

_QUAD = r"[01](?:\.\d+)?(?:, [01](?:\.\d+)?){3}"
_BOX = rf"<bbox>({_QUAD}(?:<delim>{_QUAD})*)</bbox>"
_OCR_ITEM = re.compile(rf"<char>([^<>]+)</char>{_BOX}")
_GROUND_ITEM = re.compile(rf"<obj>([^<>]+)</obj>{_BOX}")


@dataclass(frozen=True, slots=True)
class Said:
    """A text and its boxes, as a model said them."""

    text: str
    boxes: tuple[Box, ...]


def parse(text: str, item: re.Pattern[str]) -> list[Said]:
    """Return what an answer says, item by item."""
    said = []
    for match in item.finditer(text):
        quads = [tuple(map(float, quad.split(", "))) for quad in match[2].split("<delim>")]
        said.append(Said(match[1], tuple((q[0], q[1], q[2], q[3]) for q in quads)))
    return said


def is_well_formed(text: str) -> bool:
    """Whether nothing of the markup is left over once complete items are taken out."""
    rest = _GROUND_ITEM.sub("", _OCR_ITEM.sub("", text))
    return not re.search(r"</?(?:char|obj|bbox)>|<delim>|<\|", rest)


def iou(a: Box, b: Box) -> float:
    """Return intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(0.0, width) * max(0.0, height)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return inter / (areas - inter) if areas > inter else 0.0


def edits(a: str, b: str) -> int:
    """Return the Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def script(text: str) -> str:
    """Return `latin`, `digits` or `hangul`."""
    return "digits" if text.isdigit() else "latin" if text.isascii() else "hangul"


@dataclass(slots=True)
class Tally:
    """Counts over pictures; ratios are `right / asked`."""

    asked: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    total_iou: float = 0.0
    misses: list[tuple[int, str, str]] = field(default_factory=list)

    def count(self, name: str, right: bool) -> None:
        self.asked[name] += 1
        self.right[name] += right

    def ratio(self, name: str) -> float:
        return self.right[name] / self.asked[name] if self.asked[name] else math.nan

    def report(self) -> dict[str, Any]:
        """Return the figures, each ratio with its standard error and what it counts."""
        words, boxes = self.asked["word"], self.right["word"]
        report: dict[str, Any] = {
            "num_pictures": self.asked["picture"],
            "num_words": words,
            "character_error_rate": self.right["edit"] / max(1, self.asked["character"]),
            "mean_iou": self.total_iou / boxes if boxes else math.nan,
        }
        for name, key in _RATIOS.items():
            value, count = self.ratio(key), self.asked[key]
            report[name] = value
            report[f"{name}_error"] = math.sqrt(value * (1 - value) / count) if count else math.nan
        for key in sorted(key for key in self.asked if ":" in key):
            report[f"by_{key}"] = round(self.ratio(key), 4)
        return report


_RATIOS = {
    "word_accuracy": "word",
    "grounding_accuracy": "shape",
    "referring_accuracy": "refer",
    "well_formed": "form",
}


def score_ocr(picture: Picture, text: str, tally: Tally) -> None:
    """Count the words of one `<ocr>` answer."""
    said = parse(text, _OCR_ITEM)
    tally.count("form", is_well_formed(text))
    left = list(said)
    for word in picture.words:
        same = [item for item in left if item.text == word.text]
        best = max(same, key=lambda item: iou(item.boxes[0], word.box), default=None)
        if best is not None:
            left.remove(best)
            tally.total_iou += iou(best.boxes[0], word.box)
        else:
            tally.misses.append((picture.seed, word.text, " ".join(item.text for item in said)))
        rows, columns = picture.grid
        for name in ("word", f"grid:{rows}x{columns}", f"script:{script(word.text)}", f"letters:{len(word.text)}"):
            tally.count(name, best is not None)
    truth = "\n".join(word.text for word in picture.words)
    tally.asked["character"] += len(truth)
    tally.right["edit"] += edits("\n".join(item.text for item in said), truth)


def score_ground(picture: Picture, text: str, tally: Tally) -> None:
    """Count the shapes of one `<gro>` answer."""
    tally.count("form", is_well_formed(text))
    said = [(item.text.removesuffix("s"), box) for item in parse(text, _GROUND_ITEM) for box in item.boxes]
    for shape in picture.shapes:
        match = next((s for s in said if s[0] == shape.name and iou(s[1], shape.box) > 0.5), None)
        if match is not None:
            said.remove(match)
        tally.count("shape", match is not None)


def evaluate(answer: Answer, seeds: Iterable[int], contents: tuple[str | None, ...] = (None,)) -> Tally:
    """Ask about held-out pictures and count what is right.

    Pictures with words are read, pictures with shapes described, and one object of each is referred to.
    """
    tally = Tally()
    for position, seed in enumerate(seeds):
        picture = draw(seed, content=contents[position % len(contents)])
        rng = random.Random(seed)
        tally.asked["picture"] += 1
        if picture.words:
            score_ocr(picture, answer(picture.image, OCR), tally)
        if picture.shapes:
            score_ground(picture, answer(picture.image, rng.choice(GROUND)), tally)
        task = refer(picture, rng)
        said = answer(picture.image, task.question)
        tally.count("refer", said == task.text)
        tally.count(
            "refer:" + ("word" if task.text[0].isupper() or not task.text.islower() else "shape"), said == task.text
        )
    return tally


def transformers_answer(folder: Path, max_new_tokens: int = 160) -> Answer:
    """Return a function that asks a checkpoint through transformers, greedily, in fp32."""
    import torch
    from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    from training import tiles

    model: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder)
    processor: Any = LlavaOnevisionImageProcessorPil.from_pretrained(folder)
    image_token = model.config.image_token_index

    def answer(image: Image.Image, prompt: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        before, after = text.split("<image>")
        count = len(tiles.plan(*image.size).indices)
        ids = tokenizer(before).input_ids + [image_token] * count + tokenizer(after).input_ids
        pixels = processor(image, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                pixel_values=pixels["pixel_values"],
                image_sizes=pixels["image_sizes"],
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
        said: str = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=False)
        return said.removesuffix("<|im_end|>")

    return answer


def main() -> None:
    """Print the figures of a checkpoint as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--start", type=int, default=0, help="first held-out picture")
    parser.add_argument("--misses", action="store_true", help="also print the words that were not read")
    options = parser.parse_args()
    begun = time.time()
    tally = evaluate(transformers_answer(options.checkpoint), held_out_seeds(options.pictures, options.start))
    print(json.dumps(tally.report() | {"seconds": round(time.time() - begun, 1)}, indent=2))
    if options.misses:
        for seed, word, said in tally.misses:
            print(seed, word, "->", said)


if __name__ == "__main__":
    main()
