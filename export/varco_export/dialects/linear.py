"""A linear layer's weights on their way from the checkpoint to a graph, block by block.

Several weights of the checkpoint may form one linear (query, key and value; gate and up): their rows, the output
features, follow each other. A linear falls into parts, runs of weights that one matrix product can hold; nearly always
that is one part. A dialect turns each part into its operators and puts the results side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from varco_export.quantized.integers import bytes_per_row, fit_rows
from varco_export.quantized.weights import Activations, Fp8Weight, IntegerWeight, QuantizedWeight
from varco_export.reading.tensor import Tensor
from varco_runtime.dtypes import Array

Weight = Tensor | QuantizedWeight


class _Rows:
    """Base of what holds rows of weights, one after another: W `[out_features, in_features]`."""

    __slots__ = ()
    weights: tuple[Weight, ...]

    @property
    def in_features(self) -> int:
        return self.weights[0].shape[1]

    @property
    def out_features(self) -> int:
        return sum(weight.shape[0] for weight in self.weights)


@dataclass(frozen=True, slots=True)
class Linear(_Rows):
    """y = x W^T + b, with W `[out_features, in_features]` as the rows of `weights` one after another."""

    name: str
    weights: tuple[Weight, ...]
    biases: tuple[Tensor, ...] = ()

    def parts(self) -> list[Part]:
        """Return the longest runs of weights of one kind, in order."""
        runs: list[list[Weight]] = [[self.weights[0]]]
        for before, weight in pairwise(self.weights):
            if _fit_together(before, weight):
                runs[-1].append(weight)
            else:
                runs.append([weight])
        names = [self.name] if len(runs) == 1 else [run[0].name.removesuffix(".weight") for run in runs]
        return [_part(name, run) for name, run in zip(names, runs, strict=True)]

    def bias(self) -> Array:
        """Return the bias `[out_features]` in fp32."""
        return np.concatenate([tensor.read().astype(np.float32) for tensor in self.biases])


@dataclass(frozen=True, slots=True)
class FloatPart(_Rows):
    """Rows stored as floats."""

    name: str
    weights: tuple[Tensor, ...]

    def blocks(self) -> Iterator[Array]:
        """Yield blocks of rows `[rows, in_features]` in the checkpoint's own type."""
        for tensor in self.weights:
            yield from tensor.blocks()


@dataclass(frozen=True, slots=True)
class IntegerPart(_Rows):
    """Rows stored as integers of `bits` bits, `group_size` input features to a scale.

    Their input features are sorted by group: feature j of the rows multiplies feature `input_order[j]` of the input,
    or simply feature j where that is None.
    """

    name: str
    weights: tuple[IntegerWeight, ...]

    @property
    def bits(self) -> int:
        return self.weights[0].bits

    @property
    def group_size(self) -> int:
        return self.weights[0].group_size

    @property
    def input_order(self) -> Array | None:
        return self.weights[0].input_order

    def packed_blocks(self, num_features: int) -> Iterator[Array]:
        """Yield blocks of rows `[rows, num_features * bits / 8]` uint8, low nibble first.

        Beyond `in_features` a row is filled up with zeros.
        """
        num_bytes = bytes_per_row(num_features, self.bits)
        for weight in self.weights:
            for block in weight.packed_blocks():
                yield fit_rows(block, num_bytes)

    def scales(self) -> Array:
        """Return scales `[out_features, groups]` in fp32, exactly as stored."""
        return np.concatenate([weight.scales() for weight in self.weights])

    def zeros(self) -> Array | None:
        """Return zero points `[out_features, groups]` uint8, or None where every one is 2^(bits-1)."""
        zeros = [weight.zeros() for weight in self.weights]
        if all(rows is None for rows in zeros):
            return None
        return np.concatenate(
            [
                np.full((weight.shape[0], weight.num_groups), weight.half, np.uint8) if rows is None else rows
                for weight, rows in zip(self.weights, zeros, strict=True)
            ]
        )


@dataclass(frozen=True, slots=True)
class Fp8Part(_Rows):
    """Rows stored in float8 E4M3, with how their input is rounded."""

    name: str
    weights: tuple[Fp8Weight, ...]

    @property
    def activations(self) -> Activations:
        return self.weights[0].activations

    @property
    def input_scale(self) -> float | None:
        """Return the one scale of the input where `activations` is `tensor`, else None."""
        return self.weights[0].input_scale

    def blocks(self) -> Iterator[Array]:
        """Yield blocks of rows `[rows, in_features]` in float8."""
        for weight in self.weights:
            yield from weight.values.blocks()

    def scales(self) -> Array:
        """Return one scale per row, `[out_features]` in fp32."""
        rows = [np.broadcast_to(weight.scales(), (weight.shape[0],)) for weight in self.weights]
        return np.concatenate(rows)


Part = FloatPart | IntegerPart | Fp8Part


def _fit_together(a: Weight, b: Weight) -> bool:
    """Return whether one matrix product can hold both: of one kind, group size, order and rounding of the input."""
    match a, b:
        case Tensor(), Tensor():
            return True
        case IntegerWeight(), IntegerWeight():
            return (a.bits, a.group_size) == (b.bits, b.group_size) and _same_order(a.input_order, b.input_order)
        case Fp8Weight(), Fp8Weight():
            return (a.activations, a.input_scale) == (b.activations, b.input_scale)
    return False


def _same_order(a: Array | None, b: Array | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


def _part(name: str, weights: list[Weight]) -> Part:
    tensors = tuple(weight for weight in weights if isinstance(weight, Tensor))
    integers = tuple(weight for weight in weights if isinstance(weight, IntegerWeight))
    fp8 = tuple(weight for weight in weights if isinstance(weight, Fp8Weight))
    return FloatPart(name, tensors) if tensors else IntegerPart(name, integers) if integers else Fp8Part(name, fp8)


def fold_order(producer: Linear, consumer: Linear) -> tuple[Linear, Linear]:
    """Let `producer` give its features in the order in which `consumer` reads them, where both can.

    Each weight of the producer (gate, up) gives what the consumer (down) takes, feature by feature. Where the consumer
    has no order of its own, or the producer is not quantized, both come back as they are, and the dialect gathers.
    """
    (weight,) = consumer.weights
    if not isinstance(weight, IntegerWeight) or weight.input_order is None:
        return producer, consumer
    order = weight.input_order
    moved = []
    for part in producer.weights:
        if not isinstance(part, IntegerWeight):
            return producer, consumer
        assert part.shape[0] == len(order), f"Bug: {part.name} gives {part.shape[0]} features, {len(order)} are read"
        moved.append(replace(part, rows=order))
    assert not producer.biases, "Bug: a bias would have to be reordered too"
    return replace(producer, weights=tuple(moved)), replace(consumer, weights=(replace(weight, sorted_input=True),))


def quantize_rows(rows: Array, bits: int, block_size: int) -> tuple[Array, Array]:
    """Round rows to symmetric integers in blocks of input features, each block with one scale.

    The scale is the entry of largest magnitude, sign included, over -2^(bits-1), so that this entry is exact and all
    2^bits levels are used (the rule of llama.cpp's Q4_0). A short last block is filled with zeros.

    Args:
        rows: Floats `[n, k]`.
        bits: 4 or 8.
        block_size: Input features of a block.

    Returns:
        Values `[n, ceil(k / block_size), block_size]` uint8, with zero stored as 2^(bits-1), and scales `[n, ceil(k /
        block_size)]` fp32.
    """
    num_rows, width = rows.shape
    num_blocks = -(-width // block_size)
    values = np.zeros((num_rows, num_blocks * block_size), dtype=np.float32)
    values[:, :width] = rows
    values = values.reshape(num_rows, num_blocks, block_size)
    largest, smallest = values.max(axis=2), values.min(axis=2)
    half = 1 << (bits - 1)
    scales = np.where(largest > -smallest, largest, smallest) / np.float32(-half)  # [n, blocks]
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scales
    inverse[np.isinf(inverse)] = 0  # a block of zeros, or of numbers too small to divide by
    values *= inverse[:, :, None]
    np.rint(values, out=values)
    values += half
    np.clip(values, 0, 2 * half - 1, out=values)
    return values.astype(np.uint8), scales
