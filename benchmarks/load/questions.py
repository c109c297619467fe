"""What is asked: texts and pictures, new each time or repeated, the same of the server and of the engine."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

KINDS = ("text", "new picture", "repeated picture")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
NUM_WORDS = 24
REPEATED = 4
"""Pictures that are repeated: as many as a caller shows again and again."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Args:
        prompt: Its text.
        picture: A PNG, or None.
        max_tokens: Tokens of its answer, of which there are always so many: an end token ends nothing.
    """

    prompt: str
    picture: bytes | None
    max_tokens: int

    def body(self, is_streamed: bool = True, **more: Any) -> bytes:
        """Return it as OpenAI's JSON.

        Args:
            is_streamed: Whether the answer comes in pieces, with its usage at the end.
            more: Further fields.
        """
        content: Any = self.prompt
        if self.picture is not None:
            url = "data:image/png;base64," + base64.b64encode(self.picture).decode()
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": self.prompt}]
        streamed = {"stream": True, "stream_options": {"include_usage": True}} if is_streamed else {}
        document = {
            "model": "varco",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        return json.dumps(document | streamed | more).encode()


class Questions:
    """An endless supply, drawn from a seed.

    Args:
        kind: One of `KINDS`.
        seed: What everything is drawn from.
        max_tokens: Tokens of each answer.
        side_px: The side of a picture.
    """

    def __init__(self, kind: str, seed: int, max_tokens: int, side_px: int = 448) -> None:
        self._kind = kind
        self._random = np.random.default_rng(seed)
        self._max_tokens = max_tokens
        self._side_px = side_px
        self._kept = [self._picture() for _ in range(REPEATED)] if kind == "repeated picture" else []

    def next(self) -> Question:
        """Return the next question; its words are new, so that no cache knows its text."""
        words = ["".join(self._random.choice(LETTERS, 5)) for _ in range(NUM_WORDS)]
        picture = None
        if self._kept:
            picture = self._kept[int(self._random.integers(len(self._kept)))]
        elif self._kind == "new picture":
            picture = self._picture()
        return Question(" ".join(words), picture, self._max_tokens)

    def _picture(self) -> bytes:
        """A picture of soft shapes: a PNG as large as a drawing's, not as noise's."""
        small = self._random.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((self._side_px, self._side_px), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        return file.getvalue()
