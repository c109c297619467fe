"""Questions in VARCO's markup: for all text, for places, and about a place."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

from varco_runtime.errors import PromptError
from varco_runtime.markup.regions import TAG, Box, quad_text

OCR_PROMPT = "<ocr>"


def ground_prompt(question: str) -> str:
    """Return a question whose answer shall name places."""
    return f"<gro>\n{question}"


def refer_prompt(template: str, text: str, box: Box | Sequence[float]) -> str:
    """Return a question about the object `text` in `box`.

    Args:
        template: The question; the object's markup takes the place of `{object}`, or stands in front of it all.
        text: What the object is called, in words.
        box: Its place, as fractions of the picture: x1, y1, x2, y2.

    Returns:
        The prompt, in VARCO's markup.

    Raises:
        PromptError: The box is not inside the picture or covers nothing, or the text is blank or holds a tag.
    """
    if tag := TAG.search(text):
        raise PromptError(
            f"The object text {text!r} holds the markup {tag.group()}: expected words. Leave the tags out."
        )
    if not text.strip():
        raise PromptError(f"The object text is {text!r}: expected some words. Name the object, as 'this thing'.")
    markup = f"<obj>{text}</obj><bbox>{quad_text(_check_box(box))}</bbox>"
    return template.replace("{object}", markup) if "{object}" in template else markup + template


def _check_box(box: Box | Sequence[float]) -> Box:
    numbers = (box.x1, box.y1, box.x2, box.y2) if isinstance(box, Box) else tuple(box)
    if len(numbers) != 4 or not all(isinstance(number, Real) for number in numbers):
        raise PromptError(
            f"The box {numbers} is not four numbers: expected x1, y1, x2, y2. Give it as 0.1, 0.2, 0.3, 0.4."
        )
    checked = Box(*map(float, numbers))
    if round(checked.x1, 3) >= round(checked.x2, 3) or round(checked.y1, 3) >= round(checked.y2, 3):
        raise PromptError(
            f"The box {numbers} covers nothing at three decimals: expected x1 < x2 and y1 < y2. "
            "Give the top-left corner first, then the bottom-right one."
        )
    return checked
