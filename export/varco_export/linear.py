"""A linear layer's weights on their way from the checkpoint to a graph, block by block.

Several checkpoint tensors may form one linear (query, key and value; gate and up): their rows, the output features,
follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from varco_export.checkpoint import Tensor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x W^T + b, with W `[out_features, in_features]` as the rows of `tensors` one after another."""

    name: str
    tensors: tuple[Tensor, ...]
    biases: tuple[Tensor, ...] = ()

    @property
    def in_features(self) -> int:
        return self.tensors[0].shape[1]

    @property
    def out_features(self) -> int:
        return sum(tensor.shape[0] for tensor in self.tensors)

    def blocks(self) -> Iterator[Array]:
        """Blocks of rows `[rows, in_features]` in the checkpoint's own type."""
        for tensor in self.tensors:
            yield from tensor.blocks()

    def bias(self) -> Array:
        """The bias `[out_features]` in fp32."""
        return np.concatenate([tensor.read().astype(np.float32) for tensor in self.biases])


def quantise_rows(rows: Array, bits: int, block_size: int) -> tuple[Array, Array]:
    """Round rows `[n, k]` to symmetric integers in blocks of `block_size` along k, each with one scale.

    Returns values `[n, ceil(k / block_size), block_size]` uint8, with zero stored as 2^(bits-1), and scales
    `[n, ceil(k / block_size)]` fp32. The scale is the entry of largest magnitude, sign included, over -2^(bits-1), so
    that this entry is exact and all 2^bits levels are used (the rule of llama.cpp's Q4_0). A short last block is filled
    with zeros.
    """
    num_rows, width = rows.shape
    num_blocks = -(-width // block_size)
    values = np.zeros((num_rows, num_blocks * block_size), dtype=np.float32)
    values[:, :width] = rows
    values = values.reshape(num_rows, num_blocks, block_size)
    largest, smallest = values.max(axis=2), values.min(axis=2)
    half = 1 << (bits - 1)
    scales = np.where(largest > -smallest, largest, smallest) / np.float32(-half)  # [n, blocks]
    with np.errstate(divide="ignore"):
        inverse = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
    values *= inverse[:, :, None]
    np.rint(values, out=values)
    values += half
    np.clip(values, 0, 2 * half - 1, out=values)
    return values.astype(np.uint8), scales


def pack_values(values: Array, bits: int) -> Array:
    """Values `[n, blocks, block_size]` as MatMulNBits stores them: `[n, blocks, block_size * bits / 8]`, low nibble
    first."""
    if bits == 8:
        return values
    packed: Array = values[:, :, 0::2] | (values[:, :, 1::2] << 4)
    return packed
