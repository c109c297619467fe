"""A picture file's bytes -> upright RGB, or one line for a stranger: no path, no class, no library's words."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from varco_runtime.errors import DamagedImageError, ImageError
from varco_runtime.picture.loading import decode_upright
from varco_serve.pictures.formats import ACCEPTED, format_name

_BAND_BYTES = 4 << 20
_EXPECTED = f"Expected {', '.join(ACCEPTED[:-1])} or {ACCEPTED[-1]}"


class RefusedError(Exception):
    """A picture that is not decoded.

    Args:
        message: One line.
        code: OpenAI's short name of the reason.
        is_ordinary: Whether the process is as good as before; else it ends after it has said so.
    """

    def __init__(self, message: str, code: str, is_ordinary: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.is_ordinary = is_ordinary


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture as the wire takes it.

    Args:
        width: Pixels, upright.
        height: Pixels, upright.
        is_animated: Whether it is the first of several frames.
        bands: Its RGB, row by row, in parts, so that no second copy of a large picture is held.
    """

    width: int
    height: int
    is_animated: bool
    bands: tuple[bytes, ...]


def decode(data: bytes) -> Decoded:
    """Decode a picture file as `varco_runtime` would, if it is in a format that the server takes.

    Args:
        data: The whole file.

    Raises:
        RefusedError: It is in another format, is damaged, or asks for too much.
    """
    if not data:
        raise RefusedError(f"The picture is empty (0 bytes). {_EXPECTED}.", "empty_image_file")
    name = format_name(data)
    if name is None or name not in ACCEPTED:
        what = f"of the kind {name!r}" if name else "in no format that is known here"
        raise RefusedError(f"The picture is {what}. {_EXPECTED}; convert it to one of them.", "invalid_image_format")
    try:
        image, is_animated = decode_upright(data, "the picture")
    except ImageError as error:
        raise _refusal(error, name) from error
    return Decoded(*image.size, is_animated, _bands(image))


def _refusal(error: ImageError, name: str) -> RefusedError:
    if isinstance(error.__context__, MemoryError):
        return RefusedError(
            f"The {name} takes more memory to decode than one picture may. Save it in a smaller size.",
            "image_too_large",
            is_ordinary=False,
        )
    if isinstance(error, DamagedImageError):  # says what the library said, with the name of its exception
        return RefusedError(
            f"The {name} is damaged or cut off. Expected a complete file; save it again.", "image_parse_error"
        )
    text = str(error)
    return RefusedError(text[:1].upper() + text[1:], "image_too_large")


def _bands(image: Image.Image) -> tuple[bytes, ...]:
    width, height = image.size
    rows = max(1, _BAND_BYTES // (3 * width))
    boxes = ((0, top, width, min(top + rows, height)) for top in range(0, height, rows))
    return tuple(image.crop(box).tobytes() for box in boxes)
