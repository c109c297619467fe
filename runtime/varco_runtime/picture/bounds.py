"""Which format a picture file has, and what it asks of a decoder: counted in its bytes before Pillow sees them.

A few bytes can ask for minutes or gigabytes: thousands of scans over the same pixels, a tile of two billion pixels for
a picture of a hundred by a hundred, a record for every pixel. Each check here walks the structure of one format, never
its pixels, counts what costs a decoder time or memory beyond the size of the picture, and refuses what no camera or
editor writes. The walk reads a file as Pillow and its libraries do. Where a file is damaged it stops without a word:
the decoder says what is wrong.

Layouts: JPEG, ITU T.81 annex B. PNG, ISO 15948 section 5. GIF, the GIF89a specification. TIFF, TIFF 6.0 section 2 and
BigTIFF. WebP, RFC 9649 section 2. JPEG 2000, ITU T.800 annexes A and I.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from varco_runtime.errors import ImageError

MAX_PIXELS = 89_478_485
"""Largest width x height that is decoded: Pillow's own limit, 256 MiB of RGB."""

MAX_DECODING_BYTES = 12 * MAX_PIXELS
"""The most that decoding one picture takes beside its file: 1 GiB. Most formats take up to 12 bytes per pixel."""

WEBP_BYTES_PER_PIXEL = 17
"""What libwebp and Pillow hold at once: two canvases, the frame and the picture, of 4 bytes per pixel each."""

MAX_SEGMENTS = 1024  # JPEG: depth maps and extended XMP come in some hundred of them
MAX_SEGMENTS_OF_A_KIND = 16  # JPEG: EXIF and quantization tables, which Pillow reads in quadratic time
MAX_JUNK_BYTES = 65_536  # JPEG: between segments, read one by one
MAX_SCANS = 100
MAX_SCANNED_PIXELS = 16 * MAX_PIXELS  # width x height x scans: progressive pictures have some ten scans
MAX_CHUNKS = 256  # PNG, beside those that hold pixels
MAX_PIXEL_CHUNKS = 65_536
MAX_BLOCKS = 65_536  # GIF: in front of the first frame, read one by one
MAX_TAGS = 512
MAX_TAG_VALUES = 262_144  # TIFF: a transfer function of 16 bits has 196,608
MAX_PARTS = 65_536  # TIFF: strips or tiles
MAX_TILE_PIXELS = 2048 * 2048  # TIFF: of a tile that is larger than its picture
MAX_TILES = 4096  # JPEG 2000: OpenJPEG takes 12 kB for each
MAX_HEADER_SEGMENTS = 65_536  # of the picture, its tiles and their parts
MAX_PRECINCTS = 131_072  # OpenJPEG takes 0.5 to 1 kB for each
MAX_PACKETS = 4_194_304
MIN_CODE_BLOCK = 32 * 32  # samples: OpenJPEG takes 0.5 kB for each block beside them
MAX_BOXES = 1024


@dataclass(frozen=True, slots=True)
class Format:
    """A format that is accepted.

    Args:
        name: What messages call it.
        key: Pillow's name of it.
        plugin: The module of Pillow that decodes it.
        check: Refuses a file whose structure asks for more than its pixels cost.
    """

    name: str
    key: str
    plugin: str
    check: Callable[[bytes], None]


class _ExcessError(Exception):
    """What a file holds that costs too much, in words that follow "with"."""


def check_structure(data: bytes, name: str) -> Format:
    """Check that decoding a picture file costs what its pixels cost, and return its format.

    Args:
        data: the whole file.
        name: what messages call the picture.

    Returns:
        The format, by the file's first bytes.

    Raises:
        ImageError: the format is none of `FORMATS`, or the file asks for more than a decoder shall do.
    """
    format_ = next((format_ for signature, format_ in FORMATS if re.match(signature, data, re.DOTALL)), None)
    if format_ is None and re.match(VIDEO, data, re.DOTALL):
        raise ImageError(
            f"{name} is a video and no picture. Give it as one: Video(path), or varco run --video FILE; or give one of"
            " its frames."
        )
    if format_ is None:
        raise ImageError(
            f"{name} is not a picture in a format that is read: it begins with {data[:8]!r}. Expected JPEG, MPO, PNG,"
            " WebP, GIF, BMP, TIFF or JPEG 2000; convert it to PNG, or open it with Pillow yourself and give the image."
        )
    try:
        format_.check(data)
    except _ExcessError as excess:
        raise ImageError(
            f"{name} is a {format_.name} with {excess}. Decoding it would take more time or memory than a picture may;"
            " save it again as PNG or JPEG."
        ) from None
    except (struct.error, IndexError, OverflowError):  # the file ends in the middle of its structure
        pass
    return format_


def _at_most(limit: int, count: int, what: str) -> None:
    if count > limit:
        raise _ExcessError(f"{count:,} {what}, expected at most {limit:,}")


# --- JPEG -------------------------------------------------------------------------------------------------------------

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_APP1, _DQT, _SOS, _EOI = 0xE1, 0xDB, 0xDA, 0xD9
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff]")
_NEXT_MARKER_OF_SCANS = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # restart markers belong to a scan


def _check_jpeg(data: bytes) -> None:
    counts: Counter[str] = Counter()
    frame_pixels = 0
    for marker, at, num_skipped in _jpeg_segments(data):
        counts["scans" if marker == _SOS else "segments"] += 1
        counts["bytes between segments"] += 0 if counts["scans"] else num_skipped
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            frame_pixels = max(frame_pixels, width * height)
        elif marker == _DQT:
            counts["segments of quantization tables"] += 1
        elif marker == _APP1 and data.startswith(b"Exif", at + 2):
            counts["segments of EXIF"] += 1
        _at_most(MAX_SEGMENTS, counts["segments"], "segments")
        _at_most(MAX_JUNK_BYTES, counts["bytes between segments"], "bytes between segments")
        for kind in ("segments of quantization tables", "segments of EXIF"):
            _at_most(MAX_SEGMENTS_OF_A_KIND, counts[kind], kind)
        _at_most(MAX_SCANS, counts["scans"], "scans")
        _at_most(MAX_PIXELS, frame_pixels, "pixels")
        _at_most(MAX_SCANNED_PIXELS, frame_pixels * counts["scans"], "pixels in all its scans together")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield each marker of the first image in a file, where its segment's length stands, and the bytes skipped before.

    An MPO holds more images behind the first, which is the only one that is decoded.
    """
    position, pattern = 2, _NEXT_MARKER
    while found := pattern.search(data, position):
        marker, at = data[found.start() + 1], found.end()
        yield marker, at, found.start() - position
        if marker == _EOI and pattern is _NEXT_MARKER_OF_SCANS:
            return
        has_length = marker >= 0xC0 and not 0xD0 <= marker <= 0xD9
        position = at + max(2, struct.unpack_from(">H", data, at)[0]) if has_length else at
        if marker == _SOS:
            pattern = _NEXT_MARKER_OF_SCANS


# --- PNG, GIF, BMP, WebP ----------------------------------------------------------------------------------------------


def _check_png(data: bytes) -> None:
    counts: Counter[bool] = Counter()
    position, kind = 8, b""
    while position + 8 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        counts[kind in (b"IDAT", b"fdAT", b"fcTL")] += 1
        _at_most(MAX_PIXEL_CHUNKS, counts[True], "chunks of pixels")
        _at_most(MAX_CHUNKS, counts[False], "chunks beside those of pixels")
        position += 12 + length


def _check_gif(data: bytes) -> None:
    """Count the blocks of the extensions in front of the first frame, as Pillow reads them."""
    position = 13 + _gif_palette_bytes(data[10])
    num_blocks = 0
    while (kind := data[position]) not in b",;":
        position += 1
        num_blocks += 1
        if kind == ord("!"):
            position += 1
            while length := data[position]:
                position += 1 + length
                num_blocks += 1
                _at_most(MAX_BLOCKS, num_blocks, "blocks in front of its first frame")
            position += 1
        _at_most(MAX_BLOCKS, num_blocks, "blocks in front of its first frame")


def _gif_palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 128 else 0


def _check_bmp(data: bytes) -> None:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes >= 40 and struct.unpack_from("<I", data, 30)[0] in (1, 2):
        raise _ExcessError("run-length coding, which Pillow decodes in Python, byte by byte")


def _check_webp(data: bytes) -> None:
    width, height = _webp_size(data)
    _at_most(MAX_DECODING_BYTES // WEBP_BYTES_PER_PIXEL, width * height, "pixels")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return the size of the canvas, for which libwebp allocates memory as soon as a file is opened."""
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


# --- TIFF -------------------------------------------------------------------------------------------------------------

_WIDTH, _LENGTH, _SAMPLES, _ROWS_PER_STRIP, _TILE_WIDTH, _TILE_LENGTH = 256, 257, 277, 278, 322, 323
_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324
_DIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS and interoperability, which Pillow reads as well
_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "B", 7: "B", 8: "H", 9: "I", 13: "I", 16: "Q", 17: "Q", 18: "Q"}
_KEPT_AS_BYTES = (1, 2, 6, 7)  # the values of other types become Python numbers


@dataclass(frozen=True, slots=True)
class _TiffFile:
    data: bytes
    order: str
    """Byte order, as `struct` writes it."""
    is_big: bool
    """BigTIFF: counts and offsets of 64 bits."""

    def unpack(self, layout: str, offset: int) -> tuple[int, ...]:
        return struct.unpack_from(self.order + layout, self.data, offset)

    def tags(self, offset: int) -> dict[int, tuple[int, int]]:
        """Return the count of values and the first value of each tag of a directory (the largest, if a tag repeats)."""
        (num_tags,) = self.unpack("Q" if self.is_big else "H", offset)
        _at_most(MAX_TAGS, num_tags, "tags")
        entry, entry_bytes = offset + (8 if self.is_big else 2), 20 if self.is_big else 12
        tags: dict[int, tuple[int, int]] = {}
        for at in range(entry, entry + num_tags * entry_bytes, entry_bytes):
            tag, kind, count = self.unpack("HHQ" if self.is_big else "HHI", at)
            if kind not in _KEPT_AS_BYTES:
                _at_most(MAX_TAG_VALUES, count, "numbers in a tag")
            tags[tag] = max(tags.get(tag, (0, 0)), (count, self._first_value(kind, count, at)))
        return tags

    def _first_value(self, kind: int, count: int, at: int) -> int:
        """Read the first value of the entry at `at`; 0 for fractions. Signed numbers are read as unsigned ones."""
        layout = _TYPES.get(kind)
        if layout is None or not count:
            return 0
        value_at = at + (12 if self.is_big else 8)
        if count * struct.calcsize(layout) > (8 if self.is_big else 4):
            (value_at,) = self.unpack("Q" if self.is_big else "I", value_at)
        try:
            return self.unpack(layout, value_at)[0]
        except (struct.error, OverflowError):
            return 0


def _check_tiff(data: bytes) -> None:
    file = _TiffFile(data, "<" if data.startswith(b"II") else ">", is_big=data[2] == 43)
    (offset,) = file.unpack("Q", 8) if file.is_big else file.unpack("I", 4)
    tags = file.tags(offset)
    for tag in _DIRECTORIES:
        if tag in tags:
            file.tags(tags[tag][1])
    values = {tag: value for tag, (_, value) in tags.items()}
    width, height = values.get(_WIDTH, 0), values.get(_LENGTH, 0)
    tile_width, tile_height = values.get(_TILE_WIDTH, 0), values.get(_TILE_LENGTH, 0)
    own_pixels = -(-width // 16) * -(-height // 16) * 256  # a tile's sides are multiples of 16
    _at_most(max(MAX_TILE_PIXELS, own_pixels), tile_width * tile_height, "pixels in a tile")
    strip_height = max(1, min(values.get(_ROWS_PER_STRIP, height), height))
    for tag, part_width, part_height in (
        (_STRIP_OFFSETS, width, strip_height),
        (_TILE_OFFSETS, tile_width, tile_height),
    ):
        count, _ = tags.get(tag, (0, 0))
        _at_most(MAX_PARTS, count, "strips or tiles")
        num_parts = -(-width // max(1, part_width)) * -(-height // max(1, part_height))
        num_planes = max(1, values.get(_SAMPLES, 1))
        _at_most(8 + num_parts * min(num_planes, 8), count, "strips or tiles")  # each is decoded, whether needed or not


# --- JPEG 2000 --------------------------------------------------------------------------------------------------------

_SOC, _SIZ, _COD, _COC, _SOT, _SOD, _EOC = 0xFF4F, 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_OTHER_SEGMENTS = bytes.fromhex("50 55 57 58 59 5c 5d 5e 5f 60 61 63 64 74 75 77 78")  # 0xff in front of each
_SEGMENTS = frozenset((_SIZ, _COD, _COC, *(0xFF00 + code for code in _OTHER_SEGMENTS)))
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"


@dataclass(frozen=True, slots=True)
class _Codestream:
    """What the SIZ segment says: the picture and its tiles in pixels, the number of tiles and of components."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    num_tiles: int
    num_components: int

    @classmethod
    def read(cls, data: bytes, at: int) -> _Codestream:
        right, bottom, left, top, tile_width, tile_height, tiles_left, tiles_top, num_components = struct.unpack_from(
            ">IIIIIIIIH", data, at + 6
        )
        if not (left < right and top < bottom and tile_width and tile_height):
            raise _ExcessError("a picture or tiles without area")
        across = -(-(right - min(tiles_left, left)) // tile_width)
        down = -(-(bottom - min(tiles_top, top)) // tile_height)
        width, height = right - left, bottom - top
        return cls(width, height, min(tile_width, width), min(tile_height, height), across * down, num_components)

    def check(self) -> None:
        _at_most(4, self.num_components, "components")
        # OpenJPEG holds 32 bits per sample, Pillow up to 16 beside them and the picture of 4 bytes.
        _at_most(MAX_DECODING_BYTES // (4 + 7 * self.num_components), self.width * self.height, "pixels")
        _at_most(MAX_TILES, self.num_tiles, "tiles")

    def check_coding(self, data: bytes, at: int, has_precincts: bool, num_layers: int) -> None:
        """Check how components are coded; at `at` stand the number of wavelet levels and what follows it."""
        levels, block_width, block_height = data[at], data[at + 1] & 15, data[at + 2] & 15
        if (samples := 1 << block_width + block_height + 4) < MIN_CODE_BLOCK:
            raise _ExcessError(f"code blocks of {samples} samples, expected at least {MIN_CODE_BLOCK:,}")
        num_precincts = 0
        for level in range(min(levels, 32) + 1):
            size = data[at + 5 + level] if has_precincts else 0xFF
            across = -(-self.tile_width // (1 << (levels - level) + (size & 15)))
            down = -(-self.tile_height // (1 << (levels - level) + (size >> 4)))
            num_precincts += across * down
        num_precincts *= self.num_tiles * self.num_components
        _at_most(MAX_PRECINCTS, num_precincts, "precincts")
        _at_most(MAX_PACKETS, num_precincts * num_layers, "packets")


def _check_jpeg2000(data: bytes) -> None:
    start = _codestream_offset(data)
    if struct.unpack_from(">HH", data, start) != (_SOC, _SIZ):
        return
    codestream = _Codestream.read(data, start + 2)
    codestream.check()
    num_layers = 1
    for marker, at in _jpeg2000_segments(data, start + 2):
        if marker == _COD:
            (num_layers,) = struct.unpack_from(">H", data, at + 4)
            codestream.check_coding(data, at + 7, bool(data[at + 2] & 1), num_layers)
        elif marker == _COC:  # the number of a component takes one byte, for there are at most four
            codestream.check_coding(data, at + 4, bool(data[at + 3] & 1), num_layers)


def _jpeg2000_segments(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Yield the marker of each segment in the headers of picture and tile parts, and where its length stands."""
    num_segments, end = 0, 0
    while at + 2 <= len(data):
        (marker,) = struct.unpack_from(">H", data, at)
        num_segments += 1
        _at_most(MAX_HEADER_SEGMENTS, num_segments, "segments in its headers")
        if marker == _SOT:
            (part_bytes,) = struct.unpack_from(">I", data, at + 6)
            end = at + part_bytes if part_bytes else len(data)
            at += 12
        elif marker == _SOD:
            at = max(at + 2, end)
        elif marker in _SEGMENTS:
            yield marker, at + 2
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
        elif marker > 0xFF00 and marker != _EOC:
            raise _ExcessError(f"the marker {marker:#06x} in a header, behind which nothing can be counted")
        else:
            return


def _codestream_offset(data: bytes) -> int:
    """Return where the codestream begins: at once, or in a box of a JP2 file."""
    if not data.startswith(_JP2_SIGNATURE):
        return 0
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"jp2c":
            return start
        if kind == b"jp2h":
            for _ in _boxes(data, start, end):  # counted
                pass
    return len(data)


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each box in a stretch of a file, and where its content begins and ends."""
    num_boxes = 0
    while start + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if length == 1:
            (length,), head = struct.unpack_from(">Q", data, start + 8), 16
        stop = start + length if length else end
        num_boxes += 1
        _at_most(MAX_BOXES, num_boxes, "boxes")
        yield kind, start + head, stop
        start = max(stop, start + head)


VIDEO = rb"....ftyp(?!hei|hev|avi|mif|msf)|\x1aE\xdf\xa3|RIFF....AVI "
"""How files of videos begin, but for those that say it late; HEIC and AVIF are pictures in boxes alike."""
FORMATS = (
    (rb"\xff\xd8\xff", Format("JPEG", "JPEG", "JpegImagePlugin", _check_jpeg)),  # of an MPO, its first picture
    (rb"\x89PNG\r\n\x1a\n", Format("PNG", "PNG", "PngImagePlugin", _check_png)),
    (rb"RIFF....WEBP", Format("WebP", "WEBP", "WebPImagePlugin", _check_webp)),
    (rb"GIF8[79]a", Format("GIF", "GIF", "GifImagePlugin", _check_gif)),
    (rb"BM", Format("BMP", "BMP", "BmpImagePlugin", _check_bmp)),
    # Not b"MM\x00+": Pillow takes the header of a big-endian BigTIFF for another one than libtiff does.
    (rb"II\*\x00|II\+\x00|MM\x00\*|MM\*\x00|II\x00\*", Format("TIFF", "TIFF", "TiffImagePlugin", _check_tiff)),
    (
        rb"\xffO\xffQ|" + re.escape(_JP2_SIGNATURE),
        Format("JPEG 2000", "JPEG2000", "Jpeg2KImagePlugin", _check_jpeg2000),
    ),
)
"""How the files of each accepted format begin, and the format."""
