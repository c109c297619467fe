"""A picture from anywhere, as upright 8-bit RGB: bounded before decoding, one clear line when it cannot be opened.

What transformers' `load_image` and its image processor do, in that order: the EXIF orientation is applied, then
`Image.convert("RGB")` (alpha is dropped, not blended; a palette is looked up; of an animation the first frame counts).
Three deviations, each where the reference would raise or give a useless picture:

- pixels of 12 and 16 bits, integers and floats (`I;16*`, `I`, `F`) are scaled to 0..255 where `convert` clips nearly
  all to white, and inverted where a TIFF says that white is zero;
- `La` goes by way of `LA`, because Pillow has no direct way;
- a damaged EXIF block means "upright" instead of an error.

Files are read in JPEG, MPO, PNG, WebP, GIF, BMP, TIFF and JPEG 2000. Decoders of other formats are written in Python,
run other programs (EPS), open files of any format inside (IPTC), or allocate memory by what the compressed data says,
not the header (AVIF). Whoever needs one of them opens it with Pillow and gives the image.

Decoding takes at most 12 bytes per pixel beside the file (RGB and RGBA 8, progressive JPEG 10 to 12), WebP 17, JPEG
2000 7 per component and 4; pictures for which that would be more than 1 GiB are refused. The `Picture` keeps 4 bytes
per pixel. Every thread that decodes takes this much for itself; no lock is held meanwhile, and JPEG 2000, whose decoder
would hold Python's own, is decoded in a process of its own.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from varco_runtime.errors import DamagedImageError, ImageError, one_line
from varco_runtime.picture import jpeg2000
from varco_runtime.picture.bounds import MAX_PIXELS, check_structure
from varco_runtime.picture.quiet_decoders import quiet_libtiff, quiet_pillow

MAX_SIDE_PX = 1_000_000
"""Longest side: resizing needs 32 bytes per pixel of a side for its filter, so this bounds them by 32 MB."""

MAX_FILE_BYTES = 256 * 2**20
"""Largest file or stream that is read."""

_REFUSED = {  # Pillow images that their caller opened and did not load
    "EPS": "runs Ghostscript",
    "IPTC": "may wrap a file of any format, EPS included",
}
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
_ORIENTATION_TAG = 0x0112  # EXIF 2.32, section 4.6.4
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF 6.0, section 8
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

    Args:
        image: A Pillow image of mode "RGB" that nobody else writes to.
        width: Its width in pixels.
        height: Its height in pixels.
        digest: The sha256 (hex) of its size and pixels, the key under which features and cached prefixes are kept.
        is_animated: Whether it is the first frame of an animation.
    """

    image: Image.Image = field(compare=False, repr=False)
    width: int
    height: int
    digest: str
    is_animated: bool = field(default=False, compare=False)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Return (height, width) in pixels, the order that transformers calls `image_sizes`."""
        return self.height, self.width

    def rgb(self) -> npt.NDArray[np.uint8]:
        """Return the pixels as a fresh array, uint8 [H, W, 3]."""
        return np.array(self.image)


Source: TypeAlias = (
    "Picture | str | os.PathLike[Any] | bytes | bytearray | memoryview | BinaryIO | Readable | Image.Image"
    " | npt.NDArray[np.uint8]"
)


def load_picture(source: Source) -> Picture:
    """Open a path, the bytes of a file, a binary stream, a Pillow image or an array uint8 [H, W, 3].

    A Pillow image counts as it stands (the frame it is at), whatever its format, and is copied, so that it may be drawn
    on afterwards. What decoding a file costs is counted in its bytes, and its size is checked against `MAX_PIXELS`,
    before anything decodes it. No warning of Pillow gets out. Threads may call this at the same time: no lock is held
    while a picture is decoded.

    Args:
        source: the picture, or where it is.

    Returns:
        The picture, upright and in RGB; a `Picture` is returned as it is.

    Raises:
        ImageError: the picture cannot be read, is in none of the formats read here, or costs too much to decode.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, np.ndarray):
        return _picture(_image_of_array(source))
    if isinstance(source, Image.Image):
        return _picture(*_decode(source, "the picture"))
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


def decode_upright(data: bytes, name: str) -> tuple[Image.Image, bool]:
    """Decode the bytes of a file, as `load_picture` does, into an image without a digest.

    Args:
        data: the whole file.
        name: what messages call the picture.

    Returns:
        The upright image of mode "RGB", and whether it is the first frame of an animation.

    Raises:
        DamagedImageError: its decoder gave up; what that raised is the `__context__`.
        ImageError: the picture is in none of the formats read here, or costs too much to decode.
    """
    _check_file_size(len(data), name)
    format_ = check_structure(data, name)
    importlib.import_module(f"PIL.{format_.plugin}")  # Pillow would import the plugins of all its formats
    return _decode(io.BytesIO(data), name, (format_.key,))


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
        if stat.S_ISREG(status.st_mode):  # a pipe or device has no size, so it is read up to the limit
            _check_file_size(status.st_size, name)
        return _decode_bytes(_read(file, name), name)


def _read(stream: Readable, name: str) -> bytes:
    """Return all bytes of a stream; one byte more than the limit is enough to refuse it."""
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
    image, is_animated = decode_upright(data, name)
    return _picture(image, is_animated)


def _check_file_size(num_bytes: int, name: str) -> None:
    if num_bytes == 0:
        raise ImageError(f"{name} is empty (0 bytes). Expected a picture; check how it was written or sent.")
    if num_bytes > MAX_FILE_BYTES:
        raise ImageError(
            f"{name} has more than {MAX_FILE_BYTES:,} bytes, the most that is read. Save the picture in a smaller size."
        )


def _decode(source: io.BytesIO | Image.Image, name: str, formats: tuple[str, ...] = ()) -> tuple[Image.Image, bool]:
    """Decode a file in one of Pillow's `formats`, or an image that somebody else opened."""
    with quiet_pillow():
        try:
            if isinstance(source, Image.Image):
                return _upright_rgb(*_pixels(source, name)), False
            pixels, is_animated = _pixels_of_file(source, name, formats)
            return _upright_rgb(*pixels), is_animated
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise DamagedImageError(
                f"{name} cannot be decoded: it begins as {formats[0]}, but its header is damaged or of a kind that"
                " Pillow does not read. Expected a complete picture file; save it again as PNG or JPEG."
            ) from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            got = re.search(r"\d+", str(error))
            raise ImageError(_too_large(name, f"{int(got.group()):,} pixels" if got else "too many pixels")) from None
        except Exception as error:  # a decoder may raise anything: SyntaxError, struct.error, OverflowError, ...
            raise DamagedImageError(
                f"{name} cannot be decoded: {_reason(error)}. Expected a complete picture file; save it again as PNG or"
                " JPEG."
            ) from None


def _pixels_of_file(
    file: io.BytesIO, name: str, formats: tuple[str, ...]
) -> tuple[tuple[Image.Image, int, Mapping[int, Any]], bool]:
    """Return what `_pixels` returns, and whether the file is an animation."""
    with Image.open(file, formats=formats) as image:  # gone when this returns, and the decoder's memory with it
        if image.format == "JPEG2000" and image.width * image.height >= jpeg2000.MIN_PIXELS:
            apart = jpeg2000.decode_apart(file.getvalue())
            if apart is not None:
                return (apart, 1, {}), False
        return _pixels(image, name), _is_animated(image)


def _is_animated(image: Image.Image) -> bool:
    """Tell whether frames follow the one that was decoded; what cannot be told is no animation."""
    try:
        return image.format in _ANIMATED and bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame says nothing about the first one
        return False


def _pixels(image: Image.Image, name: str) -> tuple[Image.Image, int, Mapping[int, Any]]:
    """Return a copy of the decoded pixels, which holds no file and no decoder; the orientation; the tags of a TIFF."""
    if image.format in _REFUSED:
        raise ImageError(
            f"{name} is {image.format}, which {_REFUSED[image.format]} to be decoded. Expected a raster format such as"
            " PNG or JPEG; convert it to one of them."
        )
    _check_pixels(image.size, name)
    with quiet_libtiff() if image.format == "TIFF" else nullcontext():
        image.load()
    _check_pixels(image.size, name)  # some formats learn their true size only now
    return image.copy(), _orientation(image), getattr(image, "tag_v2", {})


def _upright_rgb(image: Image.Image, orientation: int, tags: Mapping[int, Any]) -> Image.Image:
    rgb = _to_rgb(image, tags)
    turn = _UPRIGHT.get(orientation)
    return rgb if turn is None else rgb.transpose(turn)


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
    """Return the EXIF (or XMP) orientation, 1 where there is none or it cannot be read. Pillow turns TIFF by itself."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels, and its parser may raise anything
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Return a picture of any mode in RGB; one that is RGB already as it is. `tags` are those of a TIFF."""
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return Image.fromarray(_to_gray(image, tags)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    return image.convert("RGB")


def _to_gray(image: Image.Image, tags: Mapping[int, Any]) -> npt.NDArray[np.uint8]:
    """Return the gray values of a picture of more than 8 bits as 8 bits, [H, W]."""
    values = np.asarray(image)
    if image.mode.startswith("I;"):
        (num_bits, *_) = tags.get(_BITS_PER_SAMPLE, (16,))
        gray = _upper_byte(values, 12 if num_bits == 12 else 16)
    else:
        gray = _to_8_bit(values)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts up to 8 bits only
        np.subtract(255, gray, out=gray)
    return gray


def _upper_byte(values: npt.NDArray[Any], num_bits: int) -> npt.NDArray[np.uint8]:
    """Return the upper 8 of `num_bits` bits of gray values [H, W], as Pillow does with 16-bit RGB."""
    gray = np.empty(values.shape, np.uint8)
    for rows in _bands(values):
        gray[rows] = values[rows] >> num_bits - 8
    return gray


def _to_8_bit(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return gray values [H, W] of 32 bits, or floats, as 0..255.

    They do not say what white is, so their range tells: floats within 0..1 are fractions, values within 0..255 are
    taken as they are, values within 0..65535 are 16-bit ones, and anything else is stretched from its minimum to its
    maximum. NaN counts as the minimum.
    """
    low, high = _finite_range(values)
    origin, scale, half = 0.0, 1.0, 0.0
    if low >= 0 and high <= 1 and values.dtype.kind == "f":
        scale, half = 255.0, 0.5
    elif low < 0 or high > 65535:
        origin, scale, half = low, 255.0 / (high - low) if high > low else 0.0, 0.5
    elif high > 255:
        scale = 1.0 / 256.0
    gray = np.empty(values.shape, np.uint8)
    for rows in _bands(values):
        with np.errstate(invalid="ignore"):  # a signaling NaN becomes a quiet one
            band = values[rows].astype(np.float64)
        np.nan_to_num(band, copy=False, nan=low, posinf=high, neginf=low)
        gray[rows] = np.floor((band - origin) * scale + half)
    return gray


def _finite_range(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the smallest and the largest of the values that are numbers, (0, 0) if none is."""
    low, high = np.inf, -np.inf
    for rows in _bands(values):
        finite = values[rows][np.isfinite(values[rows])]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _bands(values: npt.NDArray[Any]) -> Iterator[slice]:
    """Yield bands of rows that take some `_BLOCK_BYTES` as 64-bit floats."""
    num_rows = max(1, _BLOCK_BYTES // (8 * values.shape[1]))
    for top in range(0, values.shape[0], num_rows):
        yield slice(top, top + num_rows)


def _image_of_array(array: npt.NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"the array is {array.dtype} {list(array.shape)}. Expected uint8 [height, width, 3] in RGB order, 0..255."
        )
    _check_pixels((array.shape[1], array.shape[0]), "the array")
    return Image.fromarray(np.array(array, order="C"))


def _picture(image: Image.Image, is_animated: bool = False) -> Picture:
    width, height = image.size
    digest = hashlib.sha256(f"RGB {width}x{height}\n".encode())
    rows = max(1, _BLOCK_BYTES // (3 * width))
    for top in range(0, height, rows):
        digest.update(image.crop((0, top, width, min(top + rows, height))).tobytes())
    return Picture(image, width, height, digest.hexdigest(), is_animated)


def _reason(error: Exception) -> str:
    """Return what an unforeseen exception says, as at most 120 characters of one line, without its last full stop."""
    text = one_line(error, 120) or "no reason given"
    text = "".join(c if c.isprintable() else "?" for c in text)
    return f"{text.rstrip('.')} ({type(error).__name__})"
