"""Which files a graph reads: the `location` of every tensor that an ONNX model keeps outside of itself.

onnxruntime opens whatever file of the model's folder a tensor names, whether the manifest lists it or not. So the names
are read here first, from the bytes of the model and without the package `onnx`, which the runtime does not need. Only
the parts of a model that can hold such a name are walked, and of those only the ones in which its key occurs at all.
"""

from __future__ import annotations

from collections.abc import Iterator

from varco_runtime.bundle.protobuf import BYTES, fields

MAX_DEPTH = 32
"""Graphs within attributes within graphs; no network here has any."""
_KEY = b"location"

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
    for number, kind, _, first, last in fields(data, start, end):
        # The key stands as it is in the bytes of every message around it.
        if kind == BYTES and number in children and data.find(_KEY, first, last) >= 0:
            yield from _locations(children[number], data, first, last, depth + 1)


def _entry(data: bytes, start: int, end: int) -> Iterator[str]:
    """Yield the values of a key/value pair whose key is `location`. A repeated field counts each time."""
    keys, values = [], []
    for number, kind, _, first, last in fields(data, start, end):
        if kind == BYTES and number == _ENTRY_KEY:
            keys.append(data[first:last])
        elif kind == BYTES and number == _ENTRY_VALUE:
            values.append(data[first:last].decode("utf-8", errors="replace"))
    if _KEY in keys:
        yield from values or [""]
