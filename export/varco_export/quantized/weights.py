"""Quantized weights as a checkpoint holds them, whatever its layout: integers in groups, and FP8.

    W[n, k] = (value[n, k] - zero[n, k // group_size]) * scale[n, k // group_size]      IntegerWeight
    W[n, k] = value[n, k] * scale[n]                                                    Fp8Weight

Values are read in blocks of output features and never turned into floats here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from varco_export.quantized import integers
from varco_export.reading.tensor import Tensor
from varco_runtime.dtypes import Array

Activations = Literal["float", "token", "tensor"]
"""How an FP8 linear takes its input: as it is, rounded to FP8 by each token's largest entry, or by one fixed scale."""

BLOCK_BYTES = 8 << 20
"""Of packed values at a time; sorting them takes several times that."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class IntegerWeight(ABC):
    """W `[N, K]` as unsigned integers with a scale and a zero point per group of input features.

    Args:
        name: The linear's canonical name.
        shape: [N, K], output and input features.
        bits: 4 or 8.
        group_size: Input features of a group.
        order: `[K]`, sorts the stored input features by group (`act_order.py`); None where they are sorted.
        sorted_input: Whether the input comes in that order already.
        rows: `[N]`, another order of the output features; None for the stored one.
    """

    name: str
    shape: tuple[int, int]
    bits: int
    group_size: int
    order: Array | None = None
    sorted_input: bool = False
    rows: Array | None = None

    @property
    def input_order(self) -> Array | None:
        """Return the order `[K]` in which the input must come, None for the usual one."""
        return None if self.sorted_input else self.order

    @property
    def num_groups(self) -> int:
        """Return the number of groups in a row."""
        return -(-self.shape[1] // self.group_size)

    @property
    def half(self) -> int:
        """Return the zero point of a symmetric weight."""
        return 1 << (self.bits - 1)

    def packed_blocks(self) -> Iterator[Array]:
        """Yield bytes `[n, bytes]` of the values of each output feature, sorted by group, low nibble first."""
        blocks = self._stored_blocks()
        if self.rows is not None:
            blocks = iter([np.concatenate(list(blocks))[self.rows]])
        for block in blocks:
            if self.order is None:
                yield block
                continue
            step = max(1, BLOCK_BYTES // max(block.shape[1], 1))
            for start in range(0, len(block), step):
                values = integers.unpack(block[start : start + step], self.bits, self.shape[1])
                yield integers.pack(values[:, self.order], self.bits)

    def scales(self) -> Array:
        """Return scales `[N, groups]` fp32, exactly as stored."""
        scales = self._stored_scales().astype(np.float32)
        return scales if self.rows is None else scales[self.rows]

    def zeros(self) -> Array | None:
        """Return zero points `[N, groups]` uint8, or None where all are `half`."""
        zeros = self._stored_zeros()
        if zeros is None or bool((zeros == self.half).all()):
            return None
        return zeros if self.rows is None else zeros[self.rows]

    @abstractmethod
    def _stored_blocks(self) -> Iterator[Array]:
        """Yield bytes `[n, bytes]` of each output feature, input features in the stored order, low nibble first."""

    @abstractmethod
    def _stored_scales(self) -> Array:
        """Return scales `[N, groups]` in the stored type."""

    @abstractmethod
    def _stored_zeros(self) -> Array | None:
        """Return zero points `[N, groups]` uint8; None where the layout has none."""


@dataclass(frozen=True, slots=True, eq=False)
class Fp8Weight:
    """W `[N, K]` in float8 E4M3 with one scale for all, or one per output feature."""

    name: str
    values: Tensor
    scale: Tensor
    activations: Activations
    input_scale: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.values.shape
        return rows, columns

    def scales(self) -> Array:
        """Return scales `[N]`, or `[1]` for one that all share, in fp32."""
        scales: Array = self.scale.read().astype(np.float32).reshape(-1)
        return scales


QuantizedWeight = IntegerWeight | Fp8Weight
