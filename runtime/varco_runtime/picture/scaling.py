"""A picture scaled up before its text is read, as the card of VARCO-VISION-2.0-1.7B-OCR asks."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from PIL import Image

from varco_runtime.picture.loading import Picture


def upscaled_hw(size_hw: tuple[int, int], long_side_px: int) -> tuple[int, int]:
    """Return the (height, width) of a picture whose long side is brought up to `long_side_px`, never down.

    Source of the rounding: the card's `int(side * 2304 / max(width, height))`.
    """
    height, width = size_hw
    longest = max(height, width)
    if longest >= long_side_px:
        return size_hw
    return int(height * long_side_px / longest), int(width * long_side_px / longest)


def upscaled(picture: Picture, long_side_px: int) -> Picture:
    """Return a picture with its long side brought up to `long_side_px` by Pillow's bicubic filter.

    One that is as large already comes back as it is. Regions are fractions, so they fit both pictures.

    Args:
        picture: The picture.
        long_side_px: The length of the long side in pixels, 0 for the picture as it is.
    """
    height, width = upscaled_hw(picture.size_hw, long_side_px)
    if (height, width) == picture.size_hw:
        return picture
    image = picture.image.resize((width, height), Image.Resampling.BICUBIC)
    digest = hashlib.sha256(f"{picture.digest} as {width}x{height}".encode()).hexdigest()
    return replace(picture, image=image, width=width, height=height, digest=digest)
