"""Whether a video file has all the bytes that it says it has: FFmpeg reads a truncated file as a shorter video.

Three containers say how long they are: boxes of ISO base media files (mp4, mov: ISO 14496-12 section 4.2), the segment
of Matroska and WebM (RFC 9559, section 5.1, in EBML, RFC 8794) and RIFF (AVI). A transport stream does not.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_MAX_PARTS = 1_000_000  # fragments of an mp4 are two boxes each


def missing_bytes(file: BinaryIO, num_bytes: int) -> int:
    """Return how many bytes a file lacks at its end by what its container says; 0 if none, or if it says nothing.

    Args:
        file: The file; its position changes.
        num_bytes: Its size.
    """
    file.seek(0)
    head = file.read(16)
    try:
        if head[4:8] in _FIRST_BOXES:
            return max(0, _end_of_boxes(file, num_bytes) - num_bytes)
        if head[:4] == _EBML.to_bytes(4, "big"):
            return max(0, _end_of_segments(file, num_bytes) - num_bytes)
        if head[:4] == b"RIFF":
            return max(0, _end_of_riff(file, num_bytes) - num_bytes)
    except (struct.error, IndexError):  # the file ends within a header
        return 1
    return 0


def _end_of_boxes(file: BinaryIO, num_bytes: int) -> int:
    position = 0
    for _ in range(_MAX_PARTS):
        if position >= num_bytes:
            break
        file.seek(position)
        (size,) = struct.unpack(">I", file.read(8)[:4])
        if size == 1:
            (size,) = struct.unpack(">Q", file.read(8))
        if size < 8:  # 0: to the end of the file; others are no box
            break
        position += size
    return position


def _end_of_riff(file: BinaryIO, num_bytes: int) -> int:
    """An AVI of more than 1 GiB is a row of such chunks."""
    position = 0
    for _ in range(_MAX_PARTS):
        file.seek(position)
        kind, size = struct.unpack("<4sI", file.read(8) if position < num_bytes else b"none" + bytes(4))
        if kind != b"RIFF":
            break
        position += 8 + size + size % 2
    return position - (position == num_bytes + 1)  # some leave out the last byte, which only aligns


def _end_of_segments(file: BinaryIO, num_bytes: int) -> int:
    position = 0
    for _ in range(_MAX_PARTS):
        if position >= num_bytes:
            break
        file.seek(position)
        head = file.read(12)
        if int.from_bytes(head[:4], "big") not in (_EBML, _SEGMENT):
            break
        size, num_head_bytes = _element_size(head)
        if size is None:  # a live stream: to the end
            break
        position += num_head_bytes + size
    return position


def _element_size(head: bytes) -> tuple[int | None, int]:
    """Return the size of an element whose identifier has 4 bytes, None where it is unknown, and its head's bytes."""
    width = 9 - head[4].bit_length()  # as many bytes as the first set bit says
    if width > 8 or len(head) < 4 + width:
        raise IndexError
    size = int.from_bytes(head[4 : 4 + width], "big") & (1 << 7 * width) - 1
    return (None if size == (1 << 7 * width) - 1 else size), 4 + width
