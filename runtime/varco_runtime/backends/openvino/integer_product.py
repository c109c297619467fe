"""Products with packed integers whose weights stay where the bundle's file is mapped.

OpenVINO's own translation of MatMulNBits copies the integers, and the copy lives as long as the compiled network,
beside the one that its plugin packs for its kernels: at 0.5B a quarter of the memory of a loaded bundle. Here the
constants are views of the mapped file. Which nodes they are joined by is the same, and so is what the plugin makes of
them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from varco_runtime.dtypes import Array

_INPUT, _WEIGHT, _SCALES, _ZEROS = 0, 1, 2, 3
"""Inputs of MatMulNBits, of which the last may be absent."""
_ROUNDS_INPUTS = 4
"""The accuracy level of a product whose inputs are rounded to int8, by blocks."""


class IntegerProducts:
    """Translator of the MatMulNBits nodes of one network. It is to be kept for as long as what was compiled."""

    def __init__(self) -> None:
        import openvino
        from openvino import opset13

        self._openvino: Any = openvino
        self._ops: Any = opset13
        self._held: list[Any] = []
        """What the constants look into: OpenVINO does not hold it."""
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
        x = node.get_input(_INPUT)
        dtype = x.get_element_type()
        integers = self._view(node.get_input(_WEIGHT), (n, num_blocks, block), bits)
        zeros = self._zeros(node, n, num_blocks, bits)
        scales = ops.reshape(node.get_input(_SCALES), self._ints(n, num_blocks, 1), special_zero=False)
        floats = ops.multiply(ops.subtract(ops.convert(integers, dtype), ops.convert(zeros, dtype)), scales)
        weight = ops.reshape(floats, self._ints(n, num_blocks * block), special_zero=False)
        if num_blocks * block > k:  # the last block is filled up; a weight that is cut would be unpacked as a whole
            ends = [0] * (len(x.get_partial_shape()) - 1) + [num_blocks * block - k]
            x = ops.pad(x, self._ints(*[0] * len(ends)), self._ints(*ends), "constant")
        return [ops.matmul(x, weight, False, True).output(0)]

    def _zeros(self, node: Any, n: int, num_blocks: int, bits: int) -> Any:
        """Return the zero points `[N, blocks, 1]`, or the one number that stands for all."""
        if node.get_input_size() <= _ZEROS:
            return self._packed(np.array([1 << (bits - 1)], np.uint8), (1,), bits)
        packed: Array = node.get_input(_ZEROS).get_node().data.reshape(n, -1)
        values = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(n, -1)
        return self._ops.constant(np.ascontiguousarray(values[:, :num_blocks, None]))

    def _view(self, source: Any, shape: tuple[int, ...], bits: int) -> Any:
        """Return a constant of integers that looks into the bytes of another one."""
        return self._packed(source.get_node().data.reshape(-1).view(np.uint8), shape, bits)

    def _packed(self, data: Array, shape: tuple[int, ...], bits: int) -> Any:
        dtype = self._openvino.Type.u4 if bits == 4 else self._openvino.Type.u8
        tensor = self._openvino.Tensor(data, self._openvino.Shape(shape), dtype)
        self._held += [data, tensor]
        return self._ops.constant(tensor, shared_memory=True)

    def _ints(self, *values: int) -> Any:
        return self._ops.constant(np.array(values, np.int64))
