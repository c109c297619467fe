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
    """Token counts of one answer.

    Args:
        prompt_tokens: All of the prompt, the picture's included.
        image_tokens: Those of the picture.
        completion_tokens: Those of the answer.
        cached_tokens: Those of the prompt that were in the cache already.
    """

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one answer went, in seconds.

    Args:
        load_s: Loading the model.
        preprocess_s: From the picture to its tiles; 0 where it was encoded for an earlier question.
        vision_s: From the tiles to the image tokens; 0 likewise.
        prefill_s: The prompt, as far as it was not cached.
        ttft_s: From the call to the first token, `load_s` apart.
        tpot_s: Per token after the first.
        total_s: From the call to the end of the answer.
        drafted: How many tokens were guessed ahead.
        accepted: How many of them were right.
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
    """What one step added to an answer.

    Args:
        text: Text with markup.
        plain_text: Text without it.
        regions: The regions that it closed.
    """

    text: str
    plain_text: str
    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished answer.

    Args:
        text: The answer, markup included.
        plain_text: The same without tags and boxes.
        token_ids: The ids that were generated.
        regions: Texts and objects, with offsets into `plain_text` and boxes of 0..1.
        warnings: What was odd in the markup, a sentence each.
        finish_reason: `stop`, `length`, `stop_string`, `loop` or `cancelled`.
        usage: Token counts.
        timings: Seconds.
        picture: The picture that was asked about; None without one.
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
        """Return width and height of the upright picture in pixels, to which all boxes refer; None without one."""
        return None if self.picture is None else (self.picture.width, self.picture.height)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `varco run --json`.

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
        """Paint boxes and labels on a copy of the picture.

        Raises:
            UsageError: The answer has no picture.
        """
        from varco_runtime.answer.draw import draw

        picture, _ = self._need_picture("draw")
        return draw(picture.image, self.regions)

    def to_coco(self, image_id: int | str = 0, file_name: str = "") -> list[dict[str, Any]]:
        """Return COCO detection results, one per box.

        Args:
            image_id: The picture's id in the data set.
            file_name: Its name, for whoever reads the results.

        Raises:
            UsageError: The answer has no picture.
        """
        from varco_runtime.answer.formats import to_coco

        _, size = self._need_picture("to_coco")
        return to_coco(self.regions, size, image_id, file_name)

    def to_hocr(self, title: str = "") -> str:
        """Return an hOCR document of the regions.

        Args:
            title: What the document calls the picture.

        Raises:
            UsageError: The answer has no picture.
        """
        from varco_runtime.answer.formats import to_hocr

        _, size = self._need_picture("to_hocr")
        return to_hocr(self.regions, size, title, self.plain_text)

    def _need_picture(self, what: str) -> tuple[Picture, tuple[int, int]]:
        if self.picture is None:
            raise UsageError(f"{what} needs a picture, this answer is to text alone. Ask with an image.")
        return self.picture, (self.picture.width, self.picture.height)
