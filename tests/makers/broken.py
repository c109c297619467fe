"""Bundles broken on purpose: what a wrong exporter, builder or kernel would have made, with hashes that fit.

Each function alters one thing in a copy of a good bundle and records the new hashes, so that only numbers can tell.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from varco_export.dialects.linear import quantise_rows
from varco_export.quantized.integers import pack, unpack
from varco_runtime.bundle.manifest import FileFacts
from varco_runtime.bundle.opening import read_manifest, write_manifest

Array = np.ndarray[Any, Any]
LAYER = "language_model.layers.{}.self_attn.o_proj"


def broken(good: Path, target: Path, fault: Callable[[Path], None]) -> Path:
    """A copy of the bundle `good` with `fault` in it."""
    shutil.copytree(good, target)
    fault(target)
    manifest = read_manifest(target)
    files = {}
    for name in manifest.files:
        content = (target / name).read_bytes()
        files[name] = FileFacts(len(content), hashlib.sha256(content).hexdigest())
    assert files != manifest.files, f"{fault.__name__} changed nothing"
    write_manifest(target, dataclasses.replace(manifest, files=files))
    return target


def swapped_scales(folder: Path) -> None:
    """One projection of layer 0 has the scales of layer 1, and the other way round."""
    with _Weights(folder, "decoder") as weights:
        first, second = (f"{LAYER.format(layer)}.scales" for layer in (0, 1))
        one, other = weights.read(first), weights.read(second)
        weights.write(first, other)
        weights.write(second, one)


def transposed_projection(folder: Path) -> None:
    """One square projection of the decoder as its transpose."""
    _transpose(folder, "decoder", LAYER.format(1))


def transposed_vision_projection(folder: Path) -> None:
    """One square projection of the vision tower as its transpose."""
    _transpose(folder, "vision", "vision_tower.encoder.layers.1.self_attn.out_proj")


def _transpose(folder: Path, component: str, name: str) -> None:
    """Transpose a square weight in whatever format it is stored."""
    with _Weights(folder, component) as weights:
        if f"{name}.weight" in weights.places:
            weights.write(f"{name}.weight", weights.read(f"{name}.weight").T)
            return
        attributes = weights.attributes(f"{name}.scales")
        if "bits" not in attributes:  # int8 [in, out] with a scale per output
            matrix = weights.read(f"{name}.weight_int8") * weights.read(f"{name}.scales")
            scales = np.abs(matrix).max(axis=1) / 127
            weights.write(f"{name}.weight_int8", np.rint(matrix.T / scales))
            weights.write(f"{name}.scales", scales)
            return
        bits, block_size = attributes["bits"], attributes["block_size"]
        if bits == 4 and f"{name}.weight_int8" in weights.places:
            _transpose_split(weights, name, block_size)
            return
        packed, scales = weights.read(f"{name}.weight_int{bits}"), weights.read(f"{name}.scales")
        values = unpack(packed, bits, block_size).astype(np.float32) - (1 << (bits - 1))
        matrix = (values * scales[:, :, None].astype(np.float32)).reshape(len(scales), -1)
        values, new_scales = quantise_rows(np.ascontiguousarray(matrix[:, : attributes["K"]].T), bits, block_size)
        weights.write(f"{name}.weight_int{bits}", pack(values, bits))
        weights.write(f"{name}.scales", new_scales)


def _transpose_split(weights: _Weights, name: str, block_size: int) -> None:
    """The same for 8-bit integers that are stored as high and then low nibbles."""
    scales = np.split(weights.read(f"{name}.scales"), 2, axis=1)[1]
    high, low = np.split(unpack(weights.read(f"{name}.weight_int8"), 4, block_size), 2, axis=1)
    values = (high << 4 | low).astype(np.float32) - 128
    matrix = (values * scales[:, :, None].astype(np.float32)).reshape(len(scales), -1)[:, : len(scales)]
    values, new_scales = quantise_rows(np.ascontiguousarray(matrix.T), 8, block_size)
    weights.write(f"{name}.weight_int8", pack(np.concatenate([values >> 4, values & 15], axis=1), 4))
    weights.write(f"{name}.scales", np.concatenate([16 * new_scales, new_scales], axis=1))


def wrong_zero_points(folder: Path) -> None:
    """Every integer weight one too small: GPTQ's v1 zero points read as v2."""
    path = folder / "decoder.onnx"
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            rows, blocks, bits = attributes["N"], -(-attributes["K"] // attributes["block_size"]), attributes["bits"]
            zeros = np.full((rows, blocks), (1 << (bits - 1)) + 1, np.uint8)
            if bits == 4 and node.input[1].endswith(".weight_int8"):  # high and then low nibbles of 129
                zeros = np.repeat(np.uint8([[8, 1]]), blocks // 2, axis=1).repeat(rows, axis=0)
            name = node.input[1] + ".zero_points"
            model.graph.initializer.append(onnx.numpy_helper.from_array(pack(zeros, bits), name))
            del node.input[3:]
            node.input.append(name)  # behind A, B and scales
    path.write_bytes(model.SerializeToString(deterministic=True))


def skipped_newline(folder: Path) -> None:
    """Rows of a picture end with nothing: the newline's row of the embedding is empty."""
    manifest = read_manifest(folder)
    path = folder / manifest.embedding.file
    row_bytes = path.stat().st_size // manifest.embedding.rows
    path.write_bytes(path.read_bytes()[:-row_bytes] + bytes(row_bytes))


class _Weights:
    """The weights of one graph, read from and written to its data file."""

    def __init__(self, folder: Path, component: str) -> None:
        self.model = onnx.load(folder / f"{component}.onnx", load_external_data=False)
        self.places = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.path = folder / f"{component}.onnx.data"

    def __enter__(self) -> _Weights:
        self.data = bytearray(self.path.read_bytes())
        return self

    def __exit__(self, *_: object) -> None:
        self.path.write_bytes(self.data)

    def read(self, name: str) -> Array:
        start, stop = self._span(name)
        tensor = self.places[name]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.frombuffer(bytes(self.data[start:stop]), dtype).reshape(tuple(tensor.dims))

    def write(self, name: str, array: Array) -> None:
        start, stop = self._span(name)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.places[name].data_type)
        content = np.ascontiguousarray(array, dtype).tobytes()
        assert len(content) == stop - start, f"{name} has {stop - start} bytes, got {len(content)}"
        self.data[start:stop] = content

    def attributes(self, name: str) -> dict[str, int]:
        """The integer attributes of the node that reads `name`."""
        (node,) = (node for node in self.model.graph.node if name in node.input)
        return {entry.name: entry.i for entry in node.attribute}

    def _span(self, name: str) -> tuple[int, int]:
        entries = {entry.key: entry.value for entry in self.places[name].external_data}
        start = int(entries["offset"])
        return start, start + int(entries["length"])


FAULTS: dict[Callable[[Path], None], str] = {
    swapped_scales: "decoder, text",
    transposed_projection: "decoder, text",
    wrong_zero_points: "decoder, text",
    skipped_newline: "newlines",
    transposed_vision_projection: "vision",
}
"""Each way to break a bundle, and the component whose check must show it."""
