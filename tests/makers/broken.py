"""Bundles broken on purpose: what a wrong exporter, builder or kernel would have made, with hashes that fit.

Each function alters one thing in a copy of a good bundle and records the new hashes, so that only numbers can tell.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from varco_export.dialects.linear import quantize_rows
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
    unchanged = files == manifest.files and manifest == read_manifest(good)
    assert not unchanged, f"{fault.__name__} changed nothing"
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
        values, new_scales = quantize_rows(np.ascontiguousarray(matrix[:, : attributes["K"]].T), bits, block_size)
        weights.write(f"{name}.weight_int{bits}", pack(values, bits))
        weights.write(f"{name}.scales", new_scales)


def _transpose_split(weights: _Weights, name: str, block_size: int) -> None:
    """The same for 8-bit integers that are stored as high and then low nibbles."""
    scales = np.split(weights.read(f"{name}.scales"), 2, axis=1)[1]
    high, low = np.split(unpack(weights.read(f"{name}.weight_int8"), 4, block_size), 2, axis=1)
    values = (high << 4 | low).astype(np.float32) - 128
    matrix = (values * scales[:, :, None].astype(np.float32)).reshape(len(scales), -1)[:, : len(scales)]
    values, new_scales = quantize_rows(np.ascontiguousarray(matrix.T), 8, block_size)
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


# --- weights that are nearly right ------------------------------------------------------------------------------------


def scaled_layer(folder: Path) -> None:
    """What one layer's MLP adds is 5 % too much."""
    _scale(folder, "language_model.layers.1.mlp.down_proj", 1.05)


def scaled_norm(folder: Path) -> None:
    """One norm's gain is 2 % too much."""
    _scale(folder, "language_model.layers.0.post_attention_layernorm", 1.02)


def scaled_query(folder: Path) -> None:
    """One layer attends with 1.1 times the scale: its queries, biases included, are so much too long."""
    with _Weights(folder, "decoder") as weights:
        query = "language_model.layers.1.self_attn.qkv_proj"
        rows = weights.attributes("past.1.key")["num_heads"] * 2 * weights.read("cos_cache").shape[1]
        for name in (f"{query}.weight", f"{query}.scales", f"{query}.bias"):
            if name in weights.places:
                values = weights.read(name).copy()
                values[:rows] = values[:rows] * 1.1
                weights.write(name, values)


def one_lower(folder: Path) -> None:
    """The integers of one linear are one too small, where they can be; in floats, a step of 4 bits."""
    name = LAYER.format(1)
    with _Weights(folder, "decoder") as weights:
        kinds = [kind for kind in ("int4", "int8") if f"{name}.weight_{kind}" in weights.places]
        if not kinds:
            values = weights.read(f"{name}.weight")
            weights.write(f"{name}.weight", values - np.abs(values).max(axis=1, keepdims=True) / 8)
            return
        packed = weights.read(f"{name}.weight_{kinds[0]}")
        bits = weights.attributes(f"{name}.scales")["bits"]
        values = unpack(packed, bits, packed.shape[2] * 8 // bits)
        if bits == 4 and kinds[0] == "int8":  # high and then low nibbles: a whole int4's step
            half = values.shape[1] // 2
            values = np.concatenate([np.maximum(values[:, :half], 1) - 1, values[:, half:]], axis=1)
        else:
            values = np.maximum(values, 1) - 1
        weights.write(f"{name}.weight_{kinds[0]}", pack(values, bits))


def turned_faster(folder: Path) -> None:
    """Rotary positions of 1.01 times the theta."""
    with _Weights(folder, "decoder") as weights:
        cos = weights.read("cos_cache")
        half = cos.shape[1]
        frequencies = np.arctan2(weights.read("sin_cache")[1], cos[1])  # the angles at position 1
        angles = np.arange(len(cos))[:, None] * frequencies * 1.01 ** -(np.arange(half) / half)
        weights.write("cos_cache", np.cos(angles))
        weights.write("sin_cache", np.sin(angles))


def turned_one_on(folder: Path) -> None:
    """Rotary tables that begin at position 1. Harmless: attention sees only how far positions are apart."""
    with _Weights(folder, "decoder") as weights:
        for name in ("cos_cache", "sin_cache"):
            table = weights.read(name)
            weights.write(name, np.concatenate([table[1:], table[-1:]]))


def _scale(folder: Path, name: str, factor: float) -> None:
    with _Weights(folder, "decoder") as weights:
        name = f"{name}.weight" if f"{name}.weight" in weights.places else f"{name}.scales"
        weights.write(name, weights.read(name) * factor)


# --- attributes -------------------------------------------------------------------------------------------------------


def other_epsilon(folder: Path) -> None:
    """The decoder's norms with 1e-5 for 1e-6."""
    _set_attributes(folder, "decoder", "epsilon", 1e-5)


def large_epsilon(folder: Path) -> None:
    """The decoder's norms with 1e-3 for 1e-6."""
    _set_attributes(folder, "decoder", "epsilon", 1e-3)


def other_vision_epsilon(folder: Path) -> None:
    """The vision tower's norms with 1e-5 for 1e-6."""
    _set_attributes(folder, "vision", "epsilon", 1e-5)


def other_gelu(folder: Path) -> None:
    """The vision tower with the exact GELU for the one by tanh."""
    _set_attributes(folder, "vision", "approximate", "none")


def _set_attributes(folder: Path, component: str, name: str, value: float | str) -> None:
    path = folder / f"{component}.onnx"
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for entry in node.attribute:
            if entry.name == name:
                entry.CopyFrom(onnx.helper.make_attribute(name, value))
    path.write_bytes(model.SerializeToString(deterministic=True))


# --- settings, tokens and their rows ----------------------------------------------------------------------------------


def other_end_ids(folder: Path) -> None:
    """Another token ends the answer."""
    _set(folder, "generation", eos_token_ids=(7,))


def other_penalty(folder: Path) -> None:
    """A repetition penalty that the checkpoint does not have."""
    _set(folder, "generation", repetition_penalty=1.05)


def missing_pinpoint(folder: Path) -> None:
    """A grid of tiles is missing, one that no probe's picture takes."""
    _set(folder, "image", grid_pinpoints=read_manifest(folder).image.grid_pinpoints[:-1])


def extra_pinpoint(folder: Path) -> None:
    """A grid of tiles too many, one that no probe's picture takes."""
    image = read_manifest(folder).image
    _set(folder, "image", grid_pinpoints=(*image.grid_pinpoints, (image.tile_px, 8 * image.tile_px)))


def other_max_grid_tiles(folder: Path) -> None:
    """Large pictures shrink to fewer tokens."""
    _set(folder, "image", max_grid_tiles=4)


def other_rescale(folder: Path) -> None:
    """Pixels over 256 for over 255."""
    _set(folder, "image", rescale_factor=1 / 256)


def other_row(folder: Path) -> None:
    """The embedding of a token that no probe uses."""
    manifest = read_manifest(folder)
    path = folder / manifest.embedding.file
    content = bytearray(path.read_bytes())
    row_bytes = len(content) // manifest.embedding.rows
    content[9 * row_bytes : 10 * row_bytes] = content[10 * row_bytes : 11 * row_bytes]
    path.write_bytes(content)


def swapped_ids(folder: Path) -> None:
    """Two tokens that no probe uses have each other's ids."""
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    vocab = document["model"]["vocab"]
    first, second = (token for token, id_ in vocab.items() if id_ in (1, 2))
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(document), encoding="utf-8")


def _set(folder: Path, group: str, **values: Any) -> None:
    """Change settings in the manifest, as an exporter that misread them would."""
    manifest = read_manifest(folder)
    settings = dataclasses.replace(getattr(manifest, group), **values)
    write_manifest(folder, dataclasses.replace(manifest, **{group: settings}))


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
    scaled_layer: "decoder, text",
    scaled_norm: "decoder, text",
    scaled_query: "decoder, text",
    one_lower: "decoder, text",
    turned_faster: "decoder, text",
    other_epsilon: "settings",
    large_epsilon: "settings",
    other_vision_epsilon: "settings",
    other_gelu: "vision",
    other_end_ids: "settings",
    other_penalty: "settings",
    missing_pinpoint: "settings",
    extra_pinpoint: "settings",
    other_max_grid_tiles: "settings",
    other_rescale: "settings",
    other_row: "settings",
    swapped_ids: "settings",
}
"""Each way to break a bundle, and the component whose check must show it."""

OF_INTEGERS = (swapped_scales, wrong_zero_points)
"""Faults that floats cannot have: they have no scales and no zero points."""
SUBTLE = (scaled_layer, scaled_norm, scaled_query, one_lower, turned_faster, other_gelu)
"""Faults smaller than what rounding to fp16 does anyway."""
