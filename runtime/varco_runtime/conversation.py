"""What is asked: turns of texts, pictures and videos, and which of them a bundle takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np

from varco_runtime.bundle.manifest import Manifest
from varco_runtime.errors import ImageError, UsageError, VideoError
from varco_runtime.markup.questions import OCR_PROMPT
from varco_runtime.picture.loading import Picture, Source, load_picture
from varco_runtime.picture.media import Clip, Medium, tilings
from varco_runtime.picture.scaling import upscaled
from varco_runtime.prompt.prompter import IMAGE, VIDEO, Message
from varco_runtime.prompt.tokenizer import check_encodable
from varco_runtime.video.video import Video

Shown: TypeAlias = "Source | Clip | Video"
"""One picture or video."""
Asked: TypeAlias = "Shown | Sequence[Shown] | None"
"""What a question is about: nothing, one medium or several; without a prompt, a `str` among several is text."""
Part: TypeAlias = str | Picture | Clip


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation.

    Args:
        role: `system`, `user` or `assistant`.
        parts: Texts, pictures and videos in their order.
    """

    role: str
    parts: tuple[Part, ...]

    @property
    def message(self) -> Message:
        """Return the turn as a template takes it."""
        return Message(
            self.role,
            tuple(part if isinstance(part, str) else VIDEO if isinstance(part, Clip) else IMAGE for part in self.parts),
        )

    @property
    def text(self) -> str:
        """Return the texts alone."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def media(self) -> tuple[Picture | Clip, ...]:
        """Return the pictures and videos alone."""
        return tuple(part for part in self.parts if not isinstance(part, str))


def system_turns(text: str | None) -> list[Turn]:
    """Return the turn of a system message, none for None.

    Raises:
        PromptError: It is no text.
    """
    if text is None:
        return []
    check_encodable(text)
    return [Turn("system", (text,))]


def user_turn(asked: Asked, prompt: str | None, manifest: Manifest) -> Turn:
    """Return the user's turn, its pictures and videos loaded.

    Args:
        asked: What the question is about. Without a prompt: texts, pictures and videos in their order.
        prompt: The question, behind all media; None if it is among the parts.
        manifest: What the bundle says about itself: whether it takes videos, and the size of its tiles.

    Raises:
        ImageError: A picture cannot be opened, or the list is empty.
        VideoError: A video cannot be opened, or the bundle takes none.
        PromptError: There is neither a prompt nor a list of parts.
        UsageError: The list holds no text, or a text that names a file.
    """
    if prompt is None and isinstance(asked, (list, tuple)):
        return Turn("user", _mixed_parts(asked, manifest))
    text = cast("str", prompt)
    check_encodable(text)  # refuses what is no text
    return Turn("user", (*load_media(asked, manifest), text))


def load_media(asked: Asked, manifest: Manifest) -> tuple[Picture | Clip, ...]:
    """Return the pictures and videos of a question, loaded; none for None.

    Args:
        asked: One, a list of several, or None.
        manifest: What the bundle says about itself: whether it takes videos, and the size of its tiles.

    Raises:
        ImageError: A picture cannot be opened, or the list is empty.
        VideoError: A video cannot be opened, or the bundle takes none.
    """
    if asked is None:
        return ()
    if not isinstance(asked, (list, tuple)):
        return (_load(cast("Shown", asked), manifest),)
    if not asked:
        raise ImageError("The list of pictures is empty. Give at least one, or None to ask without a picture.")
    return tuple(_load(one, manifest) for one in asked)


def _mixed_parts(asked: Sequence[Shown], manifest: Manifest) -> tuple[Part, ...]:
    if not any(isinstance(part, str) for part in asked):
        raise UsageError("The list holds no text. Give a prompt behind it, or a text in it.")
    for part in asked:
        if isinstance(part, str) and _names_file(part):
            raise UsageError(
                f"{part!r} is a text in a list without a prompt, and names a file. Expected pathlib.Path({part!r}) for "
                "the picture, or a prompt behind the list."
            )
    return tuple(part if isinstance(part, str) else _load(part, manifest) for part in asked)


def _names_file(text: str) -> bool:
    try:
        return os.path.exists(text)
    except ValueError:  # a null character, which no path holds
        return False


def _load(one: Shown, manifest: Manifest) -> Picture | Clip:
    if isinstance(one, (Clip, Video)):
        _check_takes_video(manifest)  # before it is decoded
    if isinstance(one, Clip):
        return one
    if isinstance(one, Video):
        seen = one.tiles(manifest.image.tile_px)
        width, height = seen.size
        return Clip(seen.tiles, seen.frames, seen.times_s, width, height, seen.digest)
    if isinstance(one, np.ndarray) and one.ndim == 4:
        raise ImageError(
            f"The array is {one.dtype} {list(one.shape)}, expected uint8 [height, width, 3]. For the frames of a video "
            "give Video(array)."
        )
    return load_picture(one)


def _check_takes_video(manifest: Manifest) -> None:
    facts = manifest.media_facts
    if facts.video_token is None:
        reason = facts.no_video or "it has no token for one"
        raise VideoError(f"This bundle takes no video: {reason}. Expected pictures; give some frames as pictures.")


def media_of(
    turns: Sequence[Turn],
    manifest: Manifest,
    tiling: str = "auto",
    untrained: bool = False,
    long_side: int | None = None,
) -> tuple[Medium, ...]:
    """Return all media of a conversation, each with its tiling, if the bundle takes them.

    Args:
        turns: The conversation, the oldest turn first.
        manifest: What the bundle says about itself.
        tiling: `auto`, `grid` or `one`.
        untrained: Whether more pictures are let through than the checkpoint was trained for.
        long_side: The length in pixels to which the long side of a picture with a grid is brought up, 0 for the
            picture as it is; None for what the bundle says of pictures whose turn asks for their text, 0 for others.

    Raises:
        UsageError: The tiling is unknown.
        VideoError: The bundle takes no video, or a clip was made for another bundle, whose tiles have another size.
        ImageError: The bundle takes not so many pictures.
    """
    media = tilings([medium for turn in turns for medium in turn.media], tiling)
    sides = [_long_side(turn, long_side, manifest) for turn in turns for _ in turn.media]
    media = tuple(_scaled(medium, side) for medium, side in zip(media, sides, strict=True))
    facts, tile_px = manifest.media_facts, manifest.image.tile_px
    clips = [medium.source for medium in media if isinstance(medium.source, Clip)]
    for clip in clips:
        _check_takes_video(manifest)
        if clip.tiles.shape[1:] != (tile_px, tile_px, 3):
            raise VideoError(
                f"The video's frames are {list(clip.tiles.shape[1:])}, expected [{tile_px}, {tile_px}, 3]. Load it for "
                "this bundle."
            )
    num_images = len(media) - len(clips)
    if facts.max_images is not None and num_images > facts.max_images and not untrained:
        plural = "" if facts.max_images == 1 else "s"
        raise ImageError(
            f"The conversation shows {num_images} pictures, this model was trained with {facts.max_images} "
            f"picture{plural} at a time. Ask about fewer, or try it nevertheless: untrained=True, or varco run "
            "--untrained."
        )
    return media


def _long_side(turn: Turn, long_side: int | None, manifest: Manifest) -> int:
    """Return the pixels to which the long sides of a turn's pictures are brought up, 0 for as they are."""
    if long_side is None and turn.text == OCR_PROMPT:
        long_side = manifest.image.ocr_long_side_px
    return long_side or 0


def _scaled(medium: Medium, long_side: int) -> Medium:
    """Return a picture with a grid scaled up; one that becomes a single tile, and a video, as they are."""
    if medium.tiling != "grid" or not isinstance(medium.source, Picture):
        return medium
    shown = upscaled(medium.source, long_side)
    return medium if shown is medium.source else Medium(shown, medium.tiling, given=medium.source)
