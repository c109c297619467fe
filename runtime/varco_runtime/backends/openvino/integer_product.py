"""Products with packed integers whose weights stay where the bundle's file is mapped.

OpenVINO's own translation of MatMulNBits copies the integers, and the copy lives as long as the compiled network,
beside the one that its plugin packs for its kernels: at 0.5B a quarter of the memory of a loaded bundle. Here the
constants are views of the mapped file. Which nodes they are joined by is the same, and so is what the plugin makes of
them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from varco_runtime.backends.openvino.nodes import consumers_of, ints
from varco_runtime.dtypes import Array

_INPUT, _WEIGHT, _SCALES, _ZEROS = 0, 1, 2, 3
"""Inputs of MatMulNBits, of which the last may be absent."""
_ROUNDS_INPUTS = 4
"""The accuracy level of a product whose inputs are rounded to int8, by blocks."""


@dataclass(frozen=True, slots=True)
class _Weight:
    """The weight `[N, K]` of a product.

    Args:
        integers: `[N, bytes]` uint8, a view of the mapped file.
        scales: `[N, blocks, 1]`.
        zeros: Zero points `[N, blocks, 1]` uint8; None for the middle of the range.
        bits: 4 or 8.
        block: Inputs that share a scale.
    """

    integers: Array
    scales: Array
    zeros: Array | None
    bits: int
    block: int

    def rows(self, start: int, end: int) -> _Weight:
        """Return the rows `start` .. `end` - 1."""
        zeros = None if self.zeros is None else self.zeros[start:end]
        return _Weight(self.integers[start:end], self.scales[start:end], zeros, self.bits, self.block)


class IntegerProducts:
    """Translator of the MatMulNBits nodes of one network. It is to be kept for as long as what was compiled."""

    def __init__(self) -> None:
        import openvino
        from openvino import opset13

        self._openvino: Any = openvino
        self._ops: Any = opset13
        self._held: list[Any] = []
        """What the constants look into: OpenVINO does not hold it."""
        self._products: list[tuple[Any, _Weight]] = []
        self._blocks: Counter[int] = Counter()
        """The blocks of the products whose inputs are rounded."""

    @property
    def rounded_inputs(self) -> int | None:
        """Return how many inputs share a scale in most products that round them, None if no product does."""
        return max(self._blocks, key=self._blocks.__getitem__, default=None)

    def extension(self) -> Any:
        """Return what a `Core` is told so that it translates the nodes by this object."""
        from openvino.frontend.onnx import ConversionExtension

        return ConversionExtension("MatMulNBits", "com.microsoft", self.translate)

    def translate(self, node: Any) -> list[Any]:
        """Return x W^T `[..., N]` of x `[..., K]`: integers less zero points, times the scales of blocks."""
        k, n, bits, block = (int(node.get_attribute(name)) for name in ("K", "N", "bits", "block_size"))
        if node.get_attribute("accuracy_level", 0) == _ROUNDS_INPUTS:
            self._blocks[block] += 1
        ops, num_blocks = self._ops, -(-k // block)
        weight = _Weight(
            node.get_input(_WEIGHT).get_node().data.reshape(n, -1).view(np.uint8),
            node.get_input(_SCALES).get_node().data.reshape(n, num_blocks, 1),
            _zeros(node, n, num_blocks, bits),
            bits,
            block,
        )
        x = node.get_input(_INPUT)
        if num_blocks * block > k:  # the last block is filled up; a weight that is cut would be unpacked as a whole
            ends = [0] * (len(x.get_partial_shape()) - 1) + [num_blocks * block - k]
            x = ops.pad(x, ints(*[0] * len(ends)), ints(*ends), "constant").output(0)
        product = self._product(x, weight)
        self._products.append((product, weight))
        return [product.output(0)]

    def take_apart(self) -> None:
        """Make of each product that is split into parts as many products.

        OpenVINO joins a product with the activation that follows it, and not across a split: a prompt of the 0.5B shape
        takes 0.9 of the time, a step 1.03.
        """
        for product, weight in self._products:
            consumers = consumers_of(product)
            if [node.get_type_name() for node in consumers] != ["VariadicSplit"]:
                continue
            start = 0
            for output in consumers[0].outputs():
                width = output.get_partial_shape()[-1].get_length()
                part = self._product(product.input_value(0), weight.rows(start, start + width))
                output.replace(part.output(0))
                start += width
        self._products = []

    def _product(self, x: Any, weight: _Weight) -> Any:
        ops, dtype = self._ops, x.get_element_type()
        n, num_blocks, _ = weight.scales.shape
        integers = self._packed(weight.integers.reshape(-1), (n, num_blocks, weight.block), weight.bits)
        if weight.zeros is None:
            zeros = self._packed(np.array([1 << (weight.bits - 1)], np.uint8), (1,), weight.bits)
        else:
            zeros = ops.constant(np.ascontiguousarray(weight.zeros))
        floats = ops.subtract(ops.convert(integers, dtype), ops.convert(zeros, dtype))
        scaled = ops.multiply(floats, ops.constant(np.ascontiguousarray(weight.scales)))
        matrix = ops.reshape(scaled, ints(n, num_blocks * weight.block), special_zero=False)
        return ops.matmul(x, matrix, False, True)

    def _packed(self, data: Array, shape: tuple[int, ...], bits: int) -> Any:
        """Return a constant of integers that looks into bytes."""
        dtype = self._openvino.Type.u4 if bits == 4 else self._openvino.Type.u8
        tensor = self._openvino.Tensor(data, self._openvino.Shape(shape), dtype)
        self._held += [data, tensor]
        return self._ops.constant(tensor, shared_memory=True)


def _zeros(node: Any, n: int, num_blocks: int, bits: int) -> Array | None:
    """Return the zero points `[N, blocks, 1]` of a node, None where it has none."""
    if node.get_input_size() <= _ZEROS:
        return None
    packed: Array = node.get_input(_ZEROS).get_node().data.reshape(n, -1)
    values = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(n, -1)
    return values[:, :num_blocks, None]
