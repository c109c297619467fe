"""An animation in GIF or WebP, decoded by Pillow; its frames and their times are counted in its bytes.

Layouts: the GIF89a specification. WebP, RFC 9649 section 2.
"""

from __future__ import annotations

import importlib
import io
import itertools
import struct
from collections.abc import Iterator, Sequence

from PIL import Image

from varco_runtime.errors import ImageError, VideoError, one_line
from varco_runtime.picture import MAX_PIXELS, load_picture
from varco_runtime.picture.bounds import check_structure
from varco_runtime.picture.quiet_decoders import quiet_pillow
from varco_runtime.video.budget import Budget

FORMATS = {"GIF", "WEBP"}
"""Pillow's names of what is read here."""

_GIF_SHORTEST, _GIF_USUAL = 2, 10  # hundredths of a second: what is shorter is shown as long as browsers and FFmpeg do
_EXTENSION, _FRAME, _CONTROL = 0x21, 0x2C, 0xF9


class AnimationReader:
    """The frames of an animation.

    Args:
        data: The file.
        budget: What reading it may cost.

    Raises:
        VideoError: It is none of Pillow's, is truncated, or too large to be decoded safely.
    """

    def __init__(self, data: bytes, budget: Budget) -> None:
        self._data = data
        self._budget = budget
        try:
            self._format = check_structure(data, budget.name)
        except ImageError as error:
            raise VideoError(str(error)) from None
        delays = gif_delays if self._format.key == "GIF" else webp_delays
        try:
            self._delays_ms = list(delays(data, budget))
        except (struct.error, IndexError):
            raise self._truncated() from None
        if not self._delays_ms:
            raise VideoError(f"no frame of {budget.name} can be decoded. Expected at least one; save it again.")

    @property
    def num_frames(self) -> int:
        return len(self._delays_ms)

    @property
    def times_s(self) -> Sequence[float]:
        return [time_ms / 1000 for time_ms in itertools.accumulate(self._delays_ms[:-1], initial=0)]

    def pictures(self, numbers: Sequence[int]) -> Iterator[Image.Image]:
        importlib.import_module(f"PIL.{self._format.plugin}")
        for number, frame in zip(numbers, self._frames(numbers), strict=True):
            try:
                yield load_picture(frame).image
            except ImageError as error:
                raise VideoError(f"frame {number} of {self._budget.name}: {error}") from None

    def _frames(self, numbers: Sequence[int]) -> Iterator[Image.Image]:
        """Yield Pillow's image at each of these frames, which lives until the next one is asked for."""
        with quiet_pillow():
            try:
                with Image.open(io.BytesIO(self._data), formats=(self._format.key,)) as image:
                    self._check_size(image)
                    for number in range(numbers[-1] + 1):  # each frame is drawn over the one before it
                        self._budget.check_time()
                        image.seek(number)
                        if number in numbers:
                            yield image
            except VideoError:
                raise
            except EOFError:
                raise self._truncated() from None
            except Exception as error:  # a decoder may raise anything
                raise VideoError(
                    f"{self._budget.name} cannot be decoded: {one_line(error, 120)}. Expected a complete animation;"
                    " save it again."
                ) from None

    def _check_size(self, image: Image.Image) -> None:
        if image.width * image.height > MAX_PIXELS:
            raise VideoError(
                f"{self._budget.name} has frames of {image.width}x{image.height} pixels, too large to be decoded"
                f" safely. Expected at most {MAX_PIXELS:,} pixels; scale the animation down first."
            )

    def _truncated(self) -> VideoError:
        return VideoError(
            f"{self._budget.name} is truncated: it ends within its frames. Expected a complete animation; copy it"
            " again."
        )


def gif_delays(data: bytes, budget: Budget) -> Iterator[int]:
    """Yield how long each frame of a GIF is shown, in milliseconds.

    Raises:
        IndexError: The file ends before its last frame does.
    """
    position, delay, count = 13 + _palette_bytes(data[10]), _GIF_USUAL, 0
    while position < len(data) and (kind := data[position]) in (_EXTENSION, _FRAME):
        if kind == _EXTENSION:
            if data[position + 1] == _CONTROL:
                (delay,) = struct.unpack_from("<H", data, position + 4)
            position += 2
        else:
            count += 1
            budget.check_packets(count)
            yield 10 * (_GIF_USUAL if delay < _GIF_SHORTEST else delay)
            delay = _GIF_USUAL
            position += 11 + _palette_bytes(data[position + 9])
        while length := data[position]:
            position += 1 + length
        position += 1
    if position > len(data):  # it ends within its palette; some lack the last byte, which only says that they end
        raise IndexError


def webp_delays(data: bytes, budget: Budget) -> Iterator[int]:
    """Yield how long each frame of a WebP is shown, in milliseconds; one that is not animated has one frame.

    Raises:
        IndexError: The file ends before its last frame does.
        struct.error: It ends within a head.
    """
    (num_bytes,) = struct.unpack_from("<I", data, 4)
    if 8 + num_bytes > len(data):
        raise IndexError
    if data[12:16] != b"VP8X" or not data[20] & 2:
        yield 0
        return
    position, count = 12, 0
    while position < 8 + num_bytes:
        kind, size = struct.unpack_from("<4sI", data, position)
        if kind == b"ANMF":
            count += 1
            budget.check_packets(count)
            yield int.from_bytes(data[position + 20 : position + 23], "little")
        position += 8 + size + size % 2


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 128 else 0
