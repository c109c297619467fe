"""Protobuf's wire format, as far as an ONNX file takes to be walked and altered without the package onnx.

Source: protobuf's "Encoding" page. A message is a row of fields; each begins with its number and its wire type.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""


def fields(data: bytes, position: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield the fields of a message, and copy none of their bytes.

    Args:
        data: Bytes that hold the message.
        position: Where it begins in them.
        end: Where it ends; by default where they do.

    Yields:
        Number, wire type, where the field begins, where its value does, and where both end.

    Raises:
        ValueError: The bytes are no message.
    """
    end = len(data) if end is None else end
    while position < end:
        start = position
        tag, position = varint(data, position, end)
        if tag >> 32:  # a reader that keeps 32 bits of it would see another field
            raise ValueError("a field's number is too large")
        kind, first = tag & 7, position
        if kind == VARINT:
            _, position = varint(data, position, end)
        elif kind == BYTES:
            length, first = varint(data, position, end)
            position = first + length
        elif kind in (FIXED64, FIXED32):
            position += 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"it holds a field of kind {kind}, number {tag >> 3}, which ONNX has not")
        if position > end:
            raise ValueError(f"a field of {position - first} bytes ends beyond its message")
        yield tag >> 3, kind, start, first, position


def varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, and the position behind it.

    Raises:
        ValueError: It has not ended after ten bytes, or at `end`.
    """
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        if byte < 0x80:
            return value | byte << shift, position
        value |= (byte & 0x7F) << shift
    raise ValueError("a number has no end")


def field(number: int, value: bytes | int) -> bytes:
    """Return the bytes of a field: a varint for an integer, else a text or a message."""
    if isinstance(value, int):
        return _varint_bytes(number << 3 | VARINT) + _varint_bytes(value)
    return _varint_bytes(number << 3 | BYTES) + _varint_bytes(len(value)) + value


def _varint_bytes(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
