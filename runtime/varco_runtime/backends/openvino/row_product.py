"""The int8 tower's linears in a form that OpenVINO runs.

They round the rows of their input while they run, each by a scale of its own, which OpenVINO translates to a
FakeQuantize that fails in its shapes. Here the rows are divided by their scales and not rounded: the weights stay int8,
each column with its scale, and OpenVINO computes in the type that was asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_INPUT, _WEIGHT, _COLUMN_SCALES = 0, 1, 3
"""Inputs of MatMulIntegerToFloat. The others are the input's scale, which is 1, and what zero is, which is 0 here."""
_ROWS, _ROW_SCALES = 0, 1
"""Inputs of QuantizeLinear."""


def has_row_products(precision: str) -> bool:
    """Return whether a network of this precision, in the manifest's words, has such linears."""
    return "a scale per row" in precision


def row_product_extensions() -> list[Any]:
    """Return what a `Core` is told so that it translates both nodes of such a linear."""
    from openvino.frontend.onnx import ConversionExtension

    return [
        ConversionExtension("QuantizeLinear", _scaled_rows),
        ConversionExtension("MatMulIntegerToFloat", "com.microsoft", _product),
    ]


def _scaled_rows(node: Any) -> list[Any]:
    """Return rows `[R, K]` by their scales `[R]`, from -127 to 127."""
    from openvino import opset13 as ops

    scales = ops.unsqueeze(node.get_input(_ROW_SCALES), ops.constant(np.array([1], np.int64)))
    return [ops.divide(node.get_input(_ROWS), scales).output(0)]


def _product(node: Any) -> list[Any]:
    """Return x W `[R, N]` of x `[R, K]` and W int8 `[K, N]`, whose columns have scales `[N]`."""
    from openvino import opset13 as ops

    weight = ops.multiply(ops.convert(node.get_input(_WEIGHT), "f32"), node.get_input(_COLUMN_SCALES))
    return [ops.matmul(node.get_input(_INPUT), weight, False, False).output(0)]
