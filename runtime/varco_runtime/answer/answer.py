"""What comes back: an `Answer`, and the `Piece`s of one while it streams."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

from varco_runtime.answer.token_score import TokenScore
from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.errors import UsageError
from varco_runtime.markup.regions import Region
from varco_runtime.picture.loading import Picture
from varco_runtime.picture.media import Clip, Medium
from varco_runtime.picture.packing import num_medium_tokens
from varco_runtime.picture.tiles import num_tiles

if TYPE_CHECKING:
    from PIL import Image

# Drawing and the other formats are imported where they are asked for: a fifth of the package's import time.


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one answer.

    Args:
        prompt_tokens: All of the prompt, those of pictures and videos included.
        image_tokens: Those of pictures and videos.
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
        preprocess_s: From pictures and videos to their tiles; 0 where they were encoded for an earlier question.
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
        tokens: Where `top_logprobs` asks for them, the tokens since the piece before. Those whose text is held back
            come with the next text, and the last piece has the rest, the end token included: the tokens of all pieces
            are those of the answer.
    """

    text: str
    plain_text: str
    regions: tuple[Region, ...]
    tokens: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture or a video that was asked about.

    Args:
        kind: `image` or `video`.
        size: Width and height in pixels, upright.
        num_tiles: How many tiles were made of it; of a video, how many frames.
        num_tokens: How many image tokens.
        picture: The picture; None for a video.
        frames: The numbers of a video's frames that were looked at, from 0; none for a picture.
        times_s: When they are shown, in seconds; None for a picture, and where the video does not say.
    """

    kind: str
    size: tuple[int, int]
    num_tiles: int
    num_tokens: int
    picture: Picture | None = None
    frames: tuple[int, ...] = ()
    times_s: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return its entry in the JSON document's `media`."""
        width, height = self.size
        entry: dict[str, Any] = {
            "kind": self.kind,
            "size": {"width": width, "height": height},
            "tiles": self.num_tiles,
            "tokens": self.num_tokens,
        }
        if self.kind == "video":
            times_s = None if self.times_s is None else [round(seconds, 6) for seconds in self.times_s]
            entry |= {"frames": list(self.frames), "times_s": times_s}
        return entry


def shown(medium: Medium, settings: ImageSettings) -> Shown:
    """Return what an answer says about a medium.

    Args:
        medium: A picture or a video.
        settings: What the bundle says about pictures.
    """
    source = medium.asked
    size, counts = (source.width, source.height), (num_tiles(medium, settings), num_medium_tokens(medium, settings))
    if isinstance(source, Clip):
        return Shown("video", size, *counts, frames=source.frames, times_s=source.times_s)
    return Shown("image", size, *counts, picture=source)


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished answer.

    Args:
        text: The answer, markup included.
        plain_text: The same without tags and boxes.
        token_ids: The ids that were generated.
        regions: Texts and objects, with offsets into `plain_text` and boxes of 0..1.
        warnings: What was odd in the pictures or in the markup, a sentence each.
        finish_reason: `stop`, `length`, `stop_string`, `loop` or `cancelled`.
        usage: Token counts.
        timings: Seconds.
        media: The pictures and videos of the conversation, in its order.
        tokens: One for each of `token_ids`, where `top_logprobs` asks for them.
    """

    text: str
    plain_text: str
    token_ids: tuple[int, ...]
    regions: tuple[Region, ...]
    warnings: tuple[str, ...]
    finish_reason: str
    usage: Usage
    timings: Timings
    media: tuple[Shown, ...] = ()
    tokens: tuple[TokenScore, ...] = ()

    def __str__(self) -> str:
        return self.text

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Return the pictures of the conversation, in its order."""
        return tuple(one.picture for one in self.media if one.picture is not None)

    @property
    def picture(self) -> Picture | None:
        """Return the picture that was asked about; None without one, and with several."""
        return self.pictures[0] if len(self.pictures) == 1 else None

    @property
    def size(self) -> tuple[int, int] | None:
        """Return width and height of the upright picture in pixels, to which all boxes refer.

        None without a picture, and with several: the markup does not say which of them a box refers to.
        """
        return None if self.picture is None else (self.picture.width, self.picture.height)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `varco run --json`.

        `picture` is the width and height in pixels to which `boxes` and `boxes_px` of the regions refer, after the turn
        that EXIF asks for, or None without a picture and with several. `media` are all pictures and videos.
        """
        from varco_runtime.answer.formats import to_json_regions

        return {
            "text": self.text,
            "plain_text": self.plain_text,
            "token_ids": list(self.token_ids),
            "picture": None if self.size is None else {"width": self.size[0], "height": self.size[1]},
            "media": [one.to_dict() for one in self.media],
            "regions": to_json_regions(self.regions, self.size),
            "warnings": list(self.warnings),
            "finish_reason": self.finish_reason,
            "usage": asdict(self.usage),
            "timings": {name: round(seconds, 6) for name, seconds in asdict(self.timings).items()},
        }

    def draw(self, picture: int | None = None) -> Image.Image:
        """Paint boxes and labels on a copy of a picture.

        Args:
            picture: Which one, from 0; it must be said where there are several.

        Raises:
            UsageError: The answer has no picture, several and none was named, or not so many.
        """
        from varco_runtime.answer.draw import draw

        return draw(self._chosen("draw", picture).image, self.regions)

    def to_coco(self, image_id: int | str = 0, file_name: str = "", picture: int | None = None) -> list[dict[str, Any]]:
        """Return COCO detection results, one per box.

        Args:
            image_id: The picture's id in the data set.
            file_name: Its name, for whoever reads the results.
            picture: Which picture the boxes are taken for, as for `draw`.

        Raises:
            UsageError: As for `draw`.
        """
        from varco_runtime.answer.formats import to_coco

        chosen = self._chosen("to_coco", picture)
        return to_coco(self.regions, (chosen.width, chosen.height), image_id, file_name)

    def to_hocr(self, title: str = "", picture: int | None = None) -> str:
        """Return an hOCR document of the regions.

        Args:
            title: What the document calls the picture.
            picture: Which picture the boxes are taken for, as for `draw`.

        Raises:
            UsageError: As for `draw`.
        """
        from varco_runtime.answer.formats import to_hocr

        chosen = self._chosen("to_hocr", picture)
        return to_hocr(self.regions, (chosen.width, chosen.height), title, self.plain_text)

    def _chosen(self, what: str, index: int | None) -> Picture:
        """Return the picture that boxes are taken for."""
        pictures = self.pictures
        if not pictures:
            about = "a video" if self.media else "text alone"
            raise UsageError(f"{what} needs a picture, this answer is to {about}. Ask with an image.")
        if index is None and len(pictures) > 1:
            raise UsageError(
                f"{what} does not know which of {len(pictures)} pictures the boxes refer to: the markup does not say. "
                f"Name one: {what}(picture=0) to {what}(picture={len(pictures) - 1})."
            )
        if index is None:
            return pictures[0]
        is_whole = isinstance(index, Integral) and not isinstance(index, bool)
        if not is_whole or not 0 <= index < len(pictures):
            raise UsageError(f"{what} got picture={index!r}, expected 0 to {len(pictures) - 1}.")
        return pictures[index]
