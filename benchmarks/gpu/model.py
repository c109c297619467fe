"""A bundle for CUDA of a real model's size, with random weights written as fast as the disk takes them.

The graphs are the exporter's own, from a checkpoint that is a hole in a file. Only the contents of large weights are
replaced: one block of random values, again and again, scaled so that activations keep their size. Rounding 14 billion
numbers would take an hour and change no time that is measured.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

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
FP8_MASK, FP8_STD = 0xB7, 0.32
"""Keeps E4M3 below 1 and away from NaN; the spread of what is left."""


def model_options(shape: str) -> TinyOptions:
    """The checkpoint's sizes, stored in fp16 as the published one is."""
    if shape == "tiny":
        return TINY
    return TinyOptions(**{**SHAPES[shape], "dtype": "fp16", "sparse": True})


def bundle_bytes(shape: str, decoder: str) -> int:
    """About what the bundle takes on disk."""
    options = model_options(shape)
    text = options.num_hidden_layers * (
        options.hidden_size * options.hidden_size * 2
        + 2 * options.hidden_size * options.hidden_size * options.num_key_value_heads // options.num_attention_heads
        + 3 * options.hidden_size * options.intermediate_size
    )
    vision = (
        options.num_vision_layers
        * options.vision_hidden_size
        * (4 * options.vision_hidden_size + 2 * options.vision_intermediate_size)
    )
    ends = 2 * options.vocab_size * options.hidden_size  # token rows and head
    per_weight = {"int4": 0.5625, "int8": 1.0625, "fp8": 1.0}.get(decoder, 2.0)
    return int(text * per_weight + (vision + ends) * 2)


def bundle_path(folder: Path, shape: str, decoder: str) -> Path:
    """Where the bundle of a shape in one precision lies."""
    return folder / f"{shape}-{decoder}"


def make_bundle(folder: Path, shape: str, decoder: str, max_context: int) -> Path:
    """`bundle_path`, made unless it is there already."""
    bundle = bundle_path(folder, shape, decoder)
    if (bundle / "bundle.json").exists():
        return bundle
    checkpoint = make_checkpoint(folder, shape)
    options = ExportOptions(device="cuda", decoder=decoder, max_context=max_context, probes=False)
    with mock.patch("varco_export.export.Graph", RandomGraph):
        export(checkpoint, bundle, options, Silent())
    return bundle


def make_checkpoint(folder: Path, shape: str) -> Path:
    """`folder/shape`, made unless it is there already."""
    checkpoint = folder / shape
    if not checkpoint.exists():
        make_tiny(checkpoint, model_options(shape))
    return checkpoint


def remove(bundle: Path) -> None:
    shutil.rmtree(bundle, ignore_errors=True)


class RandomGraph(Graph):
    """A graph whose large weights are random whatever the checkpoint holds."""

    def weight(self, name: str, dtype: str, shape: Any, blocks: Any) -> str:
        count = int(np.prod(shape))
        if name.endswith(".scales"):
            return super().weight(name, dtype, shape, [np.full(shape, self._scale)])
        if "norm" in name and name.endswith(".weight"):
            return super().weight(name, dtype, shape, [np.ones(shape, np.float32)])
        num_bytes = count * DTYPES[dtype][1].itemsize
        if num_bytes < LARGE_BYTES or dtype in ("int32", "fp64") or name.endswith(("_cache", ".bias")):
            return super().weight(name, dtype, shape, blocks)
        fan_in = int(np.prod(shape[1:]))
        block = self._block(name, dtype, fan_in)
        pieces = [block[: min(len(block), num_bytes - at)] for at in range(0, num_bytes, len(block))]
        made = super().weight(name, "uint8", (num_bytes,), pieces)
        tensor = self._initializers[made]
        tensor.data_type = DTYPES[dtype][0]
        tensor.dims[:] = shape
        return made

    def _block(self, name: str, dtype: str, fan_in: int) -> np.ndarray[Any, Any]:
        """Random bytes that stand for weights of the type; sets the scale of those that have one."""
        if dtype == "uint8":  # packed integers, [n, blocks, bytes]
            bits = 4 if name.endswith("int4") else 8
            self._scale = 1 / (UNIFORM_STD[bits] * (fan_in * 8 / bits) ** 0.5)
            return _random_bytes(0xFF)
        if dtype == "fp8":
            self._scale = 1 / (FP8_STD * fan_in**0.5)
            return _random_bytes(FP8_MASK)
        return _random_floats(dtype, 1.0 if "embed" in name else fan_in**-0.5)


@functools.lru_cache(maxsize=4)
def _random_bytes(mask: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, BLOCK_BYTES, dtype=np.uint8) & np.uint8(mask)


@functools.lru_cache(maxsize=16)
def _random_floats(dtype: str, spread: float) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(0).standard_normal(BLOCK_BYTES // 4, np.float32) * np.float32(spread)
    return values.astype(DTYPES[dtype][1]).view(np.uint8)
