"""What acceptance probes show: a drawn picture as it is, or cut into several pictures or the frames of a video."""

from __future__ import annotations

import numpy as np
from PIL import Image

from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.picture.loading import Picture, load_picture
from varco_runtime.picture.media import Clip, Medium
from varco_runtime.prompt.prompter import IMAGE, VIDEO, Message, Placeholder


def shown_media(picture: Picture, shows: str, count: int, settings: ImageSettings) -> tuple[Medium, ...]:
    """Return the media that a probe's picture is seen as, with their tilings.

    Args:
        picture: The picture, at least `count` pixels wide.
        shows: `picture`, `pictures` or `video`.
        count: Into how many pictures or frames of equal width it is cut.
        settings: What the bundle says about pictures.
    """
    if shows == "picture":
        return (Medium(picture, "grid"),)
    width, height = picture.width // count, picture.height
    pieces = [picture.image.crop((index * width, 0, (index + 1) * width, height)) for index in range(count)]
    if shows == "pictures":
        return tuple(Medium(load_picture(piece), "one") for piece in pieces)
    size = settings.tile_px, settings.tile_px
    tiles = np.stack([np.asarray(piece.resize(size, Image.Resampling.BICUBIC)) for piece in pieces])
    return (Medium(Clip(tiles, tuple(range(count)), None, width, height, picture.digest), "frames"),)


def probe_message(prompt: str, media: tuple[Medium, ...]) -> Message:
    """Return the user's turn of a probe: its media, then its prompt."""
    if not media:
        return Message("user", prompt)
    placeholders: list[Placeholder] = [VIDEO if isinstance(medium.source, Clip) else IMAGE for medium in media]
    return Message("user", (*placeholders, prompt))
