"""A picture from anywhere, as upright 8-bit RGB: bounded before decoding, one clear line when it cannot be opened.

What transformers' `load_image` and its image processor do, in that order: the EXIF orientation is applied, then
`Image.convert("RGB")` (alpha is dropped, not blended; a palette is looked up; of an animation the first frame counts).
Three deviations, each where the reference would raise or give a useless picture:

- 16-bit, integer and float pixels (`I;16*`, `I`, `F`) are scaled to 0..255 where `convert` clips nearly all to white;
- `La` goes by way of `LA`, because Pillow has no direct way;
- a damaged EXIF block means "upright" instead of an error.

EPS is refused because decoding runs Ghostscript; IPTC because it wraps a file of any format, EPS included.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from varco_runtime.errors import ImageError
from varco_runtime.quiet_decoders import quiet_libtiff, quiet_pillow

MAX_PIXELS = 89_478_485
"""Largest width x height that is decoded: Pillow's own limit, 256 MiB of RGB."""

MAX_SIDE_PX = 1_000_000
"""Longest side: resizing needs 32 bytes per pixel of a side for its filter, so this bounds them by 32 MB."""

MAX_FILE_BYTES = 256 * 2**20
"""Largest file or stream that is read."""

_REFUSED = {"EPS": "runs Ghostscript", "IPTC": "may wrap a file of any format, EPS included"}
_ORIENTATION_TAG = 0x0112  # EXIF 2.32, section 4.6.4
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BLOCK_BYTES = 4 * 2**20  # pixels are hashed and scaled in bands of rows of about this many bytes


class Readable(Protocol):
    """What a binary stream must offer: `read(size)` that gives bytes."""

    def read(self, size: int = ..., /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Picture:
    """An upright RGB picture; equal pictures have equal digests.

    `image` is a Pillow image of mode "RGB" that nobody else writes to; `digest` is the sha256 (hex) of its size and
    pixels, the key under which features and cached prefixes are kept.
    """

    image: Image.Image = field(compare=False, repr=False)
    width: int
    height: int
    digest: str

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) in pixels, the order that transformers calls `image_sizes`."""
        return self.height, self.width

    def rgb(self) -> npt.NDArray[np.uint8]:
        """The pixels as a fresh array, uint8 [H, W, 3]."""
        return np.array(self.image)


Source: TypeAlias = (
    "Picture | str | os.PathLike[Any] | bytes | bytearray | memoryview | BinaryIO | Readable | Image.Image"
    " | npt.NDArray[np.uint8]"
)


def load_picture(source: Source) -> Picture:
    """Open a path, the bytes of a file, a binary stream, a Pillow image or an array uint8 [H, W, 3].

    A Pillow image counts as it stands (the frame it is at) and is copied, so that it may be drawn on afterwards. Only
    the header is read before the size is checked against `MAX_PIXELS`. Whatever is wrong with the picture raises an
    `ImageError` of one line; no warning of Pillow gets out.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, np.ndarray):
        return _picture(_image_of_array(source))
    if isinstance(source, Image.Image):
        return _decode(source, "the picture")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode_bytes(bytes(source), "the picture")
    if isinstance(source, (str, os.PathLike)):
        return _load_path(os.fsdecode(source))
    if hasattr(source, "read"):
        return _decode_bytes(_read(source, "the picture"), "the picture")
    raise ImageError(
        f"a picture cannot be made of a {type(source).__name__}. Expected a path, the bytes of a file, a binary stream,"
        " a Pillow image or a uint8 array [height, width, 3]."
    )


def _load_path(path: str) -> Picture:
    name = repr(path)  # repr keeps a message on one line whatever the file is called
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed by the `with` below; this `try` is for opening alone)
    except IsADirectoryError:
        raise ImageError(f"{name} is a folder. Expected a picture file; name one inside it.") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{name} cannot be opened: {reason}. Expected the path of a readable picture.") from None
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):  # a pipe or device: it has no size, so it is read up to the limit
            return _decode_bytes(_read(file, name), name)
        _check_file_size(status.st_size, name)
        return _decode(file, name)


def _read(stream: Readable, name: str) -> bytes:
    """All bytes of a stream; one byte more than the limit is enough to refuse it."""
    parts, num_bytes = [], 0
    try:
        while num_bytes <= MAX_FILE_BYTES:
            part = stream.read(MAX_FILE_BYTES + 1 - num_bytes)
            if not part:
                break
            if not isinstance(part, bytes):
                raise ImageError(f"{name} is a text stream. Expected bytes; open it in binary mode (sys.stdin.buffer).")
            parts.append(part)
            num_bytes += len(part)
    except ImageError:
        raise
    except Exception as error:  # a user's stream may fail in any way
        raise ImageError(f"{name} cannot be read: {_reason(error)}. Expected a readable binary stream.") from None
    return b"".join(parts)


def _decode_bytes(data: bytes, name: str) -> Picture:
    _check_file_size(len(data), name)
    return _decode(io.BytesIO(data), name)


def _check_file_size(num_bytes: int, name: str) -> None:
    if num_bytes == 0:
        raise ImageError(f"{name} is empty (0 bytes). Expected a picture; check how it was written or sent.")
    if num_bytes > MAX_FILE_BYTES:
        raise ImageError(
            f"{name} has more than {MAX_FILE_BYTES:,} bytes, the most that is read. Save the picture in a smaller size."
        )


def _decode(source: BinaryIO | io.BytesIO | Image.Image, name: str) -> Picture:
    with quiet_pillow():
        try:
            if isinstance(source, Image.Image):
                return _picture(_upright_rgb(source, name, may_alias=True))
            with Image.open(source) as image:
                return _picture(_upright_rgb(image, name, may_alias=False))
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError(
                f"{name} is not a picture in a format that Pillow opens. Expected PNG, JPEG, WebP, TIFF, GIF or BMP,"
                " among others; convert it to one of them."
            ) from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            got = re.search(r"\d+", str(error))
            raise ImageError(_too_large(name, f"{int(got.group()):,} pixels" if got else "too many pixels")) from None
        except Exception as error:  # a decoder may raise anything: SyntaxError, struct.error, OverflowError, ...
            raise ImageError(
                f"{name} cannot be decoded: {_reason(error)}. Expected a complete picture file; save it again as PNG or"
                " JPEG."
            ) from None


def _upright_rgb(image: Image.Image, name: str, *, may_alias: bool) -> Image.Image:
    """Check, decode, turn and convert; `may_alias` says that the caller keeps `image`, so pixels must be copied."""
    if image.format in _REFUSED:
        raise ImageError(
            f"{name} is {image.format}, which {_REFUSED[image.format]} to be decoded. Expected a raster format such as"
            " PNG or JPEG; convert it to one of them."
        )
    _check_pixels(image.size, name)
    with quiet_libtiff() if image.format == "TIFF" else nullcontext():
        image.load()
    _check_pixels(image.size, name)  # some formats learn their true size only now
    upright = _UPRIGHT.get(_orientation(image))
    turned = image.transpose(upright) if upright is not None else image
    rgb = _to_rgb(turned)
    return rgb.copy() if rgb is image and may_alias else rgb


def _check_pixels(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width}x{height} pixels. Expected at least 1x1.")
    if width * height > MAX_PIXELS or max(size) > MAX_SIDE_PX:
        raise ImageError(_too_large(name, f"{width}x{height} pixels"))


def _too_large(name: str, got: str) -> str:
    return (
        f"{name} has {got}, too large to be opened safely. Expected at most {MAX_PIXELS:,} pixels in all and"
        f" {MAX_SIDE_PX:,} along a side; scale the picture down first."
    )


def _orientation(image: Image.Image) -> int:
    """EXIF (or XMP) orientation, 1 where there is none or it cannot be read. Pillow turns TIFF by itself."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels, and its parser may raise anything
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB; a picture that is RGB already is returned as it is."""
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return Image.fromarray(_to_8_bit(np.asarray(image), sixteen_bit=image.mode.startswith("I;"))).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    return image.convert("RGB")


def _to_8_bit(values: npt.NDArray[Any], *, sixteen_bit: bool) -> npt.NDArray[np.uint8]:
    """Grey values [H, W] of 16 or 32 bits, or floats, to 0..255.

    16-bit values keep their upper byte, as Pillow does with 16-bit RGB. Wider modes do not say what white is, so their
    range tells: floats within 0..1 are fractions, values within 0..255 are taken as they are, values within 0..65535
    are 16-bit ones, and anything else is stretched from its minimum to its maximum. NaN counts as the minimum.
    """
    if sixteen_bit:
        return (values >> 8).astype(np.uint8)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    origin, scale, half = 0.0, 1.0, 0.0
    if low >= 0 and high <= 1 and values.dtype.kind == "f":
        scale, half = 255.0, 0.5
    elif low < 0 or high > 65535:
        origin, scale, half = low, 255.0 / (high - low) if high > low else 0.0, 0.5
    elif high > 255:
        scale = 1.0 / 256.0
    grey = np.empty(values.shape, np.uint8)
    rows = max(1, _BLOCK_BYTES // (8 * values.shape[1]))
    for top in range(0, values.shape[0], rows):
        block = values[top : top + rows].astype(np.float64)
        block = np.nan_to_num(block, copy=False, nan=low, posinf=high, neginf=low)
        grey[top : top + rows] = np.floor((block - origin) * scale + half)
    return grey


def _image_of_array(array: npt.NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"the array is {array.dtype} {list(array.shape)}. Expected uint8 [height, width, 3] in RGB order, 0..255."
        )
    _check_pixels((array.shape[1], array.shape[0]), "the array")
    return Image.fromarray(np.array(array, order="C"))


def _picture(image: Image.Image) -> Picture:
    width, height = image.size
    digest = hashlib.sha256(f"RGB {width}x{height}\n".encode())
    rows = max(1, _BLOCK_BYTES // (3 * width))
    for top in range(0, height, rows):
        digest.update(image.crop((0, top, width, min(top + rows, height))).tobytes())
    return Picture(image, width, height, digest.hexdigest())


def _reason(error: Exception) -> str:
    """What an unforeseen exception says, as at most 120 characters of one line, without its last full stop."""
    text = " ".join(str(error).split()) or "no reason given"
    text = "".join(c if c.isprintable() else "?" for c in text)
    return f"{text[:120].rstrip('.')} ({type(error).__name__})"
