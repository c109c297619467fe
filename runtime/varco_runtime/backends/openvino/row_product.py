"""The int8 tower's linears in a form that OpenVINO runs.

A bundle's graph rounds the rows of a linear's input while it runs, each by a scale of its own, multiplies integers, and
multiplies what comes out by the rows' scales. OpenVINO translates that to a FakeQuantize that fails in its shapes, and
rounds inputs by a rule of its own where it is told to. So the rows are left as they are, their scales are left out on
both sides, and the weights stay int8, each column with its scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from varco_runtime.backends.openvino.nodes import consumers_of
from varco_runtime.errors import BundleError

INPUT_GROUP = 384
"""How many inputs share a scale where OpenVINO rounds them. Of the so400m tower's widths its kernel is fastest so: a
tile takes 1.05 s, 1.16 with 128 and 1.15 with a row of 1,152."""
_INPUT, _WEIGHT, _COLUMN_SCALES = 0, 1, 3
"""Inputs of MatMulIntegerToFloat. The others are the input's scale, which is 1, and what zero is, which is 0 here."""
_ROWS = 0
"""Input of QuantizeLinear."""


def has_row_products(precision: str) -> bool:
    """Return whether a network of this precision, in the manifest's words, has such linears."""
    return "a scale per row" in precision


class RowProducts:
    """Translator of such linears of one network."""

    def __init__(self) -> None:
        from openvino import opset13

        self._ops: Any = opset13
        self._products: list[Any] = []

    def extensions(self) -> list[Any]:
        """Return what a `Core` is told so that it translates both nodes of a linear by this object."""
        from openvino.frontend.onnx import ConversionExtension

        return [
            ConversionExtension("QuantizeLinear", lambda node: [node.get_input(_ROWS)]),
            ConversionExtension("MatMulIntegerToFloat", "com.microsoft", self._product),
        ]

    def leave_out_scales(self) -> None:
        """Take the products with the rows' scales out of a network that was read with this translator.

        Raises:
            BundleError: The network has others behind its linears than a bundle's.
        """
        for product in self._products:
            reshape = _only_consumer(product, "Reshape")
            _only_consumer(reshape, "Multiply").output(0).replace(reshape.output(0))
        self._products = []

    def _product(self, node: Any) -> list[Any]:
        """Return x W^T `[R, N]` of x `[R, K]` and W int8 `[K, N]`, whose columns have scales `[N]`."""
        ops = self._ops
        weight = ops.multiply(ops.convert(node.get_input(_WEIGHT), np.float32), node.get_input(_COLUMN_SCALES))
        product = ops.matmul(node.get_input(_INPUT), weight, False, False)
        self._products.append(product)
        return [product.output(0)]


def _only_consumer(node: Any, kind: str) -> Any:
    """Return the node that takes what another gives.

    Raises:
        BundleError: There is none, there are several, or it is of another kind.
    """
    consumers = consumers_of(node)
    kinds = [consumer.get_type_name() for consumer in consumers]
    if kinds != [kind]:
        raise BundleError(
            f"The graph has {' and '.join(kinds) or 'nothing'} behind a linear in int8, expected {kind}. Export the "
            "bundle again."
        )
    return consumers[0]
