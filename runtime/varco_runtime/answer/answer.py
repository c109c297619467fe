"""What comes back: an `Answer`, and the `Piece`s of one while it streams."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from varco_runtime.errors import UsageError
from varco_runtime.markup.regions import Region
from varco_runtime.picture.loading import Picture

if TYPE_CHECKING:
    from PIL import Image

# Drawing and the other formats are imported where they are asked for: a fifth of the package's import time.


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. `prompt_tokens` includes `image_tokens`; `cached_tokens` of them were in the cache already."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds. `ttft_s` runs from the call to the first token, `load_s` apart; `tpot_s` is per token after the first.

    `drafted` counts the tokens that were guessed ahead, `accepted` those of them that were right.
    """

    load_s: float
    preprocess_s: float
    vision_s: float
    prefill_s: float
    ttft_s: float
    tpot_s: float
    total_s: float
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added: text with markup, text without, and the regions it closed."""

    text: str
    plain_text: str
    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished answer.

    `text` keeps the markup, `plain_text` has tags and boxes removed; `regions` carry offsets into `plain_text` and
    boxes of 0..1. `finish_reason` is `stop`, `length`, `stop_string` or `cancelled`. `warnings` say what was odd in
    the markup.
    """

    text: str
    plain_text: str
    token_ids: tuple[int, ...]
    regions: tuple[Region, ...]
    warnings: tuple[str, ...]
    finish_reason: str
    usage: Usage
    timings: Timings
    picture: Picture | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the upright picture in pixels, to which all boxes refer; None without one."""
        return None if self.picture is None else (self.picture.width, self.picture.height)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `varco run --json`.

        `picture` is the width and height in pixels to which `boxes` and `boxes_px` of the regions refer, after the turn
        that EXIF asks for, or None without a picture.
        """
        from varco_runtime.answer.formats import to_json_regions

        return {
            "text": self.text,
            "plain_text": self.plain_text,
            "token_ids": list(self.token_ids),
            "picture": None if self.size is None else {"width": self.size[0], "height": self.size[1]},
            "regions": to_json_regions(self.regions, self.size),
            "warnings": list(self.warnings),
            "finish_reason": self.finish_reason,
            "usage": asdict(self.usage),
            "timings": {name: round(seconds, 6) for name, seconds in asdict(self.timings).items()},
        }

    def draw(self) -> Image.Image:
        """The picture with boxes and labels painted on. Raises `UsageError` for an answer without a picture."""
        from varco_runtime.answer.draw import draw

        picture, _ = self._need_picture("draw")
        return draw(picture.image, self.regions)

    def to_coco(self, image_id: int | str = 0, file_name: str = "") -> list[dict[str, Any]]:
        """COCO results: one entry per box."""
        from varco_runtime.answer.formats import to_coco

        _, size = self._need_picture("to_coco")
        return to_coco(self.regions, size, image_id, file_name)

    def to_hocr(self, title: str = "") -> str:
        """An hOCR document of the regions."""
        from varco_runtime.answer.formats import to_hocr

        _, size = self._need_picture("to_hocr")
        return to_hocr(self.regions, size, title, self.plain_text)

    def _need_picture(self, what: str) -> tuple[Picture, tuple[int, int]]:
        if self.picture is None:
            raise UsageError(f"{what} needs a picture, this answer is to text alone. Ask with an image.")
        return self.picture, (self.picture.width, self.picture.height)
