"""A bundle for CUDA of a real model's size, with random weights written as fast as the disk takes them.

The graphs are the exporter's own, from a checkpoint that is a hole in a file. Only the contents of large weights are
replaced: one block of random values, again and again, scaled so that activations keep their size. Rounding 14 billion
numbers would take an hour and change no time that is measured.

Weights of one type and shape share one range of the data file, as the equal layers of a model are equal here: a 14B in
int4 takes 2 GB of disk and not 13. onnxruntime reads each of them to a place of its own, so the device holds and reads
as much as ever.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from onnx import TensorProto

from varco_export.export import ExportOptions, export
from varco_export.progress import Silent
from varco_export.tiny import TinyOptions, make_tiny
from varco_export.tiny.options import SHAPES
from varco_export.writing.graph import DTYPES, Graph

TINY = TinyOptions(hidden_size=320, num_attention_heads=5, num_key_value_heads=1, intermediate_size=320, vocab_size=576)
"""The 14B's head group of 5 in small: what the script itself is tried with."""
LARGE_BYTES = 1 << 16
BLOCK_BYTES = 16 << 20
UNIFORM_STD = {4: 4.6, 8: 73.9}
"""The spread of integers whose bits are all random."""
PER_WEIGHT = {"int4": 0.5625, "int8": 1.0625, "fp8": 1.0}
"""Bytes of a weight with its share of a scale; of others two."""
PAIRS, PAIR_SIZES = "-pairs", {"num_hidden_layers": 8, "vocab_size": 32_768}
"""What the shape `14b-pairs` has less of: a difference between two of its kind is per layer that of the 14B, and one
loads in seconds."""
FP8_MASK, FP8_STD = 0xB7, 0.32
"""Keeps E4M3 below 1 and away from NaN; the spread of what is left."""


def model_options(shape: str) -> TinyOptions:
    """The checkpoint's sizes, stored in fp16 as the published one is."""
    if shape.startswith("tiny"):
        return TINY
    fewer = PAIR_SIZES if shape.endswith(PAIRS) else {}
    return TinyOptions(**{**SHAPES[shape.removesuffix(PAIRS)], **fewer, "dtype": "fp16", "sparse": True})


def lacking_kernels(provider: str, *formats: str) -> str | None:
    """Return why a provider cannot compute in formats; None where it can."""
    lacking = [one for one in formats if provider == "cpu" and one in ("bf16", "fp8")]
    return f"the CPU has no kernels for {' or '.join(lacking)}" if lacking else None


def loaded_bytes(shape: str, decoder: str) -> int:
    """Return about what the weights take once they are loaded."""
    options = model_options(shape)
    layer, vision_layer, table = _layer_weights(options)
    text = options.num_hidden_layers * layer * PER_WEIGHT.get(decoder, 2.0)
    return int(text + 2 * (options.num_vision_layers * vision_layer + 2 * table))


def bundle_bytes(shape: str, decoder: str) -> int:
    """Return about what the bundle takes on disk: one layer of each kind, and the rows of tokens once for the head."""
    layer, vision_layer, table = _layer_weights(model_options(shape))
    return int(layer * PER_WEIGHT.get(decoder, 2.0) + 2 * (vision_layer + table))


def _layer_weights(options: TinyOptions) -> tuple[int, int, int]:
    """Return numbers of weights of a decoder's layer, of a tower's, and of the table of tokens."""
    width = options.hidden_size
    keys = width * width * options.num_key_value_heads // options.num_attention_heads
    layer = 2 * width * width + 2 * keys + 3 * width * options.intermediate_size
    vision = options.vision_hidden_size * (4 * options.vision_hidden_size + 2 * options.vision_intermediate_size)
    return layer, vision, options.vocab_size * width


def bundle_path(folder: Path, shape: str, name: str) -> Path:
    """Return where the bundle of a shape lies, by its precision or another name."""
    return folder / f"{shape}-{name}"


def make_bundle(folder: Path, shape: str, decoder: str, max_context: int, name: str = "", **options: object) -> Path:
    """Return `bundle_path`, made unless it is there already.

    Args:
        folder: Where checkpoints and bundles lie.
        shape: One of `model_options`.
        decoder: The format of the decoder's weights.
        max_context: Positions of the caches.
        name: Its own in `folder`, where it is more than `decoder`.
        options: Others of the export.
    """
    bundle = bundle_path(folder, shape, name or decoder)
    if (bundle / "bundle.json").exists():
        return bundle
    checkpoint = make_checkpoint(folder, shape)
    asked = ExportOptions(device="cuda", decoder=decoder, max_context=max_context, probes=False, **options)  # type: ignore[arg-type]
    with mock.patch("varco_export.export.Graph", RandomGraph):
        export(checkpoint, bundle, asked, Silent())
    return bundle


def shared_bytes(bundle: Path) -> int:
    """Return how much more the weights of a bundle take in places of their own than in its files."""
    ranges = [
        tuple(sorted((entry.key, entry.value) for entry in tensor.external_data))
        for path in bundle.glob("*.onnx")
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        if tensor.external_data
    ]
    total, once = (sum(int(dict(one)["length"]) for one in chosen) for chosen in (ranges, set(ranges)))
    return total - once


def make_checkpoint(folder: Path, shape: str) -> Path:
    """`folder/shape`, made unless it is there already."""
    checkpoint = folder / shape
    if not checkpoint.exists():
        make_tiny(checkpoint, model_options(shape))
    return checkpoint


def remove(bundle: Path) -> None:
    shutil.rmtree(bundle, ignore_errors=True)


class RandomGraph(Graph):
    """A graph whose large weights are random whatever the checkpoint holds, equal shapes in one range of the file."""

    shares = True
    """Whether weights of one type, shape and scale are written once."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._written: dict[Any, str] = {}
        self._scale = 1.0

    def weight(self, name: str, dtype: str, shape: Any, blocks: Any) -> str:
        num_bytes = int(np.prod(shape)) * DTYPES[dtype][1].itemsize
        if name.endswith(".scales"):
            content: Any = [self._scales(shape)]
            key = (dtype, *shape, self._scale)
        elif "norm" in name and name.endswith(".weight"):
            return super().weight(name, dtype, shape, [np.ones(shape, np.float32)])
        elif num_bytes < LARGE_BYTES or dtype in ("int32", "fp64") or name.endswith(("_cache", ".bias")):
            return super().weight(name, dtype, shape, blocks)
        else:
            block, key = self._block(name, dtype, int(np.prod(shape[1:]))), (dtype, *shape)
            content = [block[: min(len(block), num_bytes - at)] for at in range(0, num_bytes, len(block))]
        if self.shares and key in self._written:
            return self._share(name, self._written[key], num_bytes)
        if name.endswith(".scales"):
            self._written[key] = super().weight(name, dtype, shape, content)
            return name
        self._written[key] = super().weight(name, "uint8", (num_bytes,), content)
        tensor = self._initializers[name]
        tensor.data_type = DTYPES[dtype][0]
        tensor.dims[:] = shape
        return name

    def _share(self, name: str, other: str, num_bytes: int) -> str:
        """Let a weight be read from where another lies."""
        tensor = TensorProto()
        tensor.CopyFrom(self._initializers[other])
        tensor.name = name
        self._initializers[name] = tensor
        self.weight_bytes += num_bytes
        return name

    def _scales(self, shape: Any) -> np.ndarray[Any, Any]:
        return np.full(shape, self._scale)

    def _block(self, name: str, dtype: str, fan_in: int) -> np.ndarray[Any, Any]:
        """Return random bytes that stand for weights of the type; sets the scale of those that have one."""
        if dtype == "uint8":  # packed integers, [n, blocks, bytes]
            bits = 4 if name.endswith("int4") else 8
            self._scale = 1 / (UNIFORM_STD[bits] * (fan_in * 8 / bits) ** 0.5)
            return _random_bytes(0xFF)
        if dtype == "fp8":
            self._scale = 1 / (FP8_STD * fan_in**0.5)
            return _random_bytes(FP8_MASK)
        return _random_floats(dtype, fan_in**-0.5)


@functools.lru_cache(maxsize=4)
def _random_bytes(mask: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, BLOCK_BYTES, dtype=np.uint8) & np.uint8(mask)


@functools.lru_cache(maxsize=16)
def _random_floats(dtype: str, spread: float) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(0).standard_normal(BLOCK_BYTES // 4, np.float32) * np.float32(spread)
    return values.astype(DTYPES[dtype][1]).view(np.uint8)
