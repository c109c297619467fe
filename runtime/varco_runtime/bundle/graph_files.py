"""Which files a graph reads: the `location` of every tensor that an ONNX model keeps outside of itself.

onnxruntime opens whatever file of the model's folder a tensor names, whether the manifest lists it or not. So the names
are read here first, from the bytes of the model and without the package `onnx`, which the runtime does not need. Only
the parts of a model that can hold such a name are walked, and of those only the ones in which its key occurs at all.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_DEPTH = 32
"""Graphs within attributes within graphs; no network here has any."""
_KEY = b"location"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Field numbers of onnx.proto; each message's fields that lead to a tensor, and the message they hold.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_ENTRY_KEY, _ENTRY_VALUE = 1, 2


def external_files(model: bytes) -> set[str]:
    """Return the names of all files that a serialized ONNX model refers to.

    A name that is not UTF-8 comes with its other bytes replaced, and so is none that a manifest can list.

    Raises:
        ValueError: The bytes are no protocol buffer.
    """
    return set(_locations("model", model, 0, len(model), 0))


def _locations(message: str, data: bytes, start: int, end: int, depth: int) -> Iterator[str]:
    """Yield the names within the message that these bytes are."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    if message == "entry":
        yield from _entry(data, start, end)
        return
    children = _CHILDREN[message]
    for number, first, last in _fields(data, start, end):
        # The key stands as it is in the bytes of every message around it.
        if number in children and data.find(_KEY, first, last) >= 0:
            yield from _locations(children[number], data, first, last, depth + 1)


def _entry(data: bytes, start: int, end: int) -> Iterator[str]:
    """Yield the values of a key/value pair whose key is `location`. A repeated field counts each time."""
    keys, values = [], []
    for number, first, last in _fields(data, start, end):
        if number == _ENTRY_KEY:
            keys.append(data[first:last])
        elif number == _ENTRY_VALUE:
            values.append(data[first:last].decode("utf-8", errors="replace"))
    if _KEY in keys:
        yield from values or [""]


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the fields of a message that hold bytes: number, start and end."""
    while position < end:
        tag, position = _varint(data, position, end)
        if tag >> 32:  # a reader that keeps 32 bits of it would see another field
            raise ValueError("a field's number is too large")
        kind = tag & 7
        if kind == _VARINT:
            _, position = _varint(data, position, end)
            continue
        if kind == _BYTES:
            length, position = _varint(data, position, end)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"it holds a field of kind {kind}, which ONNX has not")
        if position + length > end:
            raise ValueError("a field ends beyond its message")
        if kind == _BYTES:
            yield tag >> 3, position, position + length
        position += length


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, and the position behind it."""
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
