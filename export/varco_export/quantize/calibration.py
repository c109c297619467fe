"""The calibration folder: pictures, prompts and answers -> token ids.

    FOLDER/*.png ...              pictures, in the order of their names, subfolders included
    FOLDER/calibration.jsonl      optional; a line: {"image": "cats.png", "prompt": "...", "answer": "..."}

With the file, its lines are the samples: `image` is a path inside FOLDER, or null for a sample of text alone; `prompt`
is required; `answer`, where given, is what the model is to say, so that what follows the prompt is calibrated as well.
Without it every picture gets the prompts of `DEFAULT_PROMPTS` whose tokens the model knows. Too many samples are
thinned out evenly. A bad line or picture ends the run before it begins, in one line that says where.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.errors import ImageError, InputError, PromptError
from varco_runtime.markup.questions import OCR_PROMPT, ground_prompt
from varco_runtime.picture.loading import Picture, load_picture
from varco_runtime.picture.packing import num_image_tokens
from varco_runtime.prompt.prompter import IMAGE, Message, Prompter

LINES = "calibration.jsonl"
DEFAULT_PROMPTS = ("Describe this image.", OCR_PROMPT, ground_prompt("Describe the image in detail."))
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MAX_LINES_BYTES = 64 << 20
MAX_PICTURES = 100_000

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture or none, a prompt, and what is to be answered if that is known. `where` names it in an error."""

    image: Path | Image.Image | None
    prompt: str
    answer: str | None
    where: str


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A sample as the decoder sees it.

    Args:
        sample: The sample.
        ids: Its token ids, the picture's placeholder repeated once per image token.
        digest: The digest of its picture; None where it has none.
    """

    sample: Sample
    ids: tuple[int, ...]
    digest: str | None

    def picture(self) -> Picture | None:
        """Open the sample's picture; None where it has none."""
        return None if self.sample.image is None else _open(self.sample)


def read_samples(folder: Path, markup_tokens: Sequence[str], max_samples: int) -> list[Sample]:
    """Read the samples of a calibration folder.

    Args:
        folder: Pictures, and optionally `calibration.jsonl`.
        markup_tokens: Tokens that the model knows; prompts with others are left out where the folder names no prompts.
        max_samples: Most samples; more are thinned out evenly.

    Raises:
        InputError: The folder cannot be used; the message names file and line.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder, expected one of calibration pictures. Check the path.")
    path = folder / LINES
    samples = _read_lines(path) if path.is_file() else _default_samples(folder, markup_tokens)
    return spread(samples, max_samples)


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """Return at most `limit` of the items, at equal distances, the first included."""
    if len(items) <= limit:
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def encode_samples(
    samples: Iterable[Sample], prompter: Prompter, settings: ImageSettings, max_tokens: int | None
) -> list[EncodedSample]:
    """Return the token ids of every sample. Each picture is opened once, for its size.

    Args:
        samples: What `read_samples` returns.
        prompter: Makes ids of messages.
        settings: How pictures become tiles.
        max_tokens: Most tokens of a sample; None for any number.

    Raises:
        InputError: A picture cannot be read, or a sample is too long; the message names it.
    """
    encoded: list[EncodedSample] = []
    opened: tuple[Path | Image.Image, Picture] | None = None
    for sample in samples:
        picture = None
        if sample.image is not None:
            if opened is None or (opened[0] is not sample.image and opened[0] != sample.image):
                opened = sample.image, _open(sample)
            picture = opened[1]
        encoded.append(_encode(sample, picture, prompter, settings, max_tokens))
    return encoded


def _encode(
    sample: Sample, picture: Picture | None, prompter: Prompter, settings: ImageSettings, max_tokens: int | None
) -> EncodedSample:
    messages = [Message("user", sample.prompt if picture is None else (IMAGE, sample.prompt))]
    if sample.answer is not None:
        messages.append(Message("assistant", sample.answer))
    try:
        num_tokens = 0 if picture is None else num_image_tokens(picture.size_hw, settings)
        ids = prompter.encode(messages, num_tokens, add_generation_prompt=sample.answer is None)
    except (ImageError, PromptError) as error:
        raise InputError(f"{sample.where}: {error}") from None
    if max_tokens is not None and len(ids) > max_tokens:
        raise InputError(
            f"{sample.where} has {len(ids)} tokens, expected at most {max_tokens}, the model's maximum. Shorten it or "
            "take a smaller picture."
        )
    return EncodedSample(sample, tuple(ids), None if picture is None else picture.digest)


def _open(sample: Sample) -> Picture:
    assert sample.image is not None, "Bug: a sample without a picture was opened"
    try:
        return load_picture(sample.image)
    except ImageError as error:
        raise InputError(f"{sample.where}: {error}") from None


def _default_samples(folder: Path, markup_tokens: Sequence[str]) -> list[Sample]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise InputError(
            f"{folder} holds no pictures and no {LINES}, expected some of {', '.join(SUFFIXES)}. Check the path."
        )
    if len(found) > MAX_PICTURES:
        raise InputError(f"{folder} holds {len(found)} pictures, expected at most {MAX_PICTURES}. Choose a subfolder.")
    known = [
        text for text in DEFAULT_PROMPTS if not text.startswith("<") or text[: text.index(">") + 1] in markup_tokens
    ]
    return [Sample(path, prompt, None, str(path.relative_to(folder))) for path in found for prompt in known]


def _read_lines(path: Path) -> list[Sample]:
    try:
        if path.stat().st_size > MAX_LINES_BYTES:
            raise InputError(
                f"{path} has {path.stat().st_size:,} bytes, expected at most {MAX_LINES_BYTES:,}. Split it."
            )
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}), expected UTF-8 text. Write it again.") from None
    samples = [_read_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not samples:
        raise InputError(f"{path} has no lines, expected a JSON object on each. Remove it, or write some.")
    return samples


def _read_line(path: Path, number: int, line: str) -> Sample:
    where = f"{path.name} line {number}"

    def bad(problem: str, expected: str) -> InputError:
        return InputError(f"{where} {problem}, expected {expected}. Correct the line or remove it.")

    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise bad(f"is not JSON ({error})", "an object with image, prompt and answer") from None
    if not isinstance(fields, dict) or fields.keys() - {"image", "prompt", "answer"}:
        raise bad(f"is {line.strip()[:80]}", "an object with no other keys than image, prompt and answer")
    image, prompt, answer = fields.get("image"), fields.get("prompt"), fields.get("answer")
    if not isinstance(prompt, str) or not prompt:
        raise bad(f"has the prompt {prompt!r:.80}", "a text")
    if answer is not None and not isinstance(answer, str):
        raise bad(f"has the answer {answer!r:.80}", "a text, or none")
    if image is None:
        return Sample(None, prompt, answer or None, where)
    if not isinstance(image, str) or not image:
        raise bad(f"has the image {image!r:.80}", "a path inside the folder, or null")
    found = path.parent / image
    try:
        is_inside = found.resolve().is_relative_to(path.parent.resolve())
    except (OSError, ValueError):  # too long, or a null byte
        is_inside = False
    if not is_inside:
        raise bad(f"has the image {image!r:.80}", "a path inside the folder")
    return Sample(found, prompt, answer or None, where)
