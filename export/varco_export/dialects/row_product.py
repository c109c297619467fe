"""Linears in int8 on both sides: one scale per row of the weight, and one per row of the input, taken while it runs.

Where arithmetic is the limit (a tile of the vision tower has 729 rows), a CPU multiplies whole int8 matrices several
times faster than blocks of integers that each have a scale of their own, as MatMulNBits does. Both roundings are
symmetric, to -127 .. 127 of the largest magnitude in the row.
"""

from __future__ import annotations

import numpy as np

from varco_export.dialects.linear import FloatPart
from varco_export.writing.graph import MICROSOFT, Graph
from varco_runtime.dtypes import Array

LARGEST = 127
ZERO = np.array(128, np.uint8)


class RowProduct:
    """Writer of linears in int8 into one graph. Linears that share an input share its rounding."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._rounded: tuple[str, str, str, str] | None = None

    def product(self, x: str, part: FloatPart) -> str:
        """Return x W^T for x `[B, S, K]` fp32: int8 products, int32 sums, then the scales of column and row."""
        graph, n, k = self._graph, part.out_features, part.in_features
        values, scales = round_rows(part)
        w = graph.weight(f"{part.name}.weight_int8", "int8", (k, n), [values.T])
        column_scales = graph.weight(f"{part.name}.scales", "fp32", (n,), [scales])
        rounded, row_scales, batch = self._round(x, k)
        one, zero = graph.constant("one", np.array(1, np.float32)), graph.constant("zero", ZERO)
        y = graph.node("MatMulIntegerToFloat", [rounded, w, one, column_scales, zero], domain=MICROSOFT)
        shape = graph.node("Concat", [batch, graph.ints(n)], axis=0)
        return graph.node("Mul", [graph.node("Reshape", [y, shape]), row_scales])

    def _round(self, x: str, width: int) -> tuple[str, str, str]:
        """Return x as bytes `[B * S, K]`, the scales of its rows `[B, S, 1]`, and B and S.

        Bytes and not int8, 128 being zero: onnxruntime multiplies bytes by int8 with the processor's own instructions
        (VNNI), int8 by int8 some ten times slower.
        """
        if self._rounded is None or self._rounded[0] != x:
            graph = self._graph
            largest = graph.node("ReduceMax", [graph.node("Abs", [x]), graph.ints(-1)], keepdims=1)
            scales = graph.node("Mul", [largest, graph.constant("per_step", np.array(1 / LARGEST, np.float32))])
            # A row of zeros: any scale that is not zero.
            scales = graph.node("Max", [scales, graph.constant("tiny", np.array(np.finfo(np.float32).tiny))])
            rows = graph.node("Reshape", [x, graph.ints(-1, width)])
            flat = graph.node("Reshape", [scales, graph.ints(-1)])
            zeros = graph.node("Expand", [graph.constant("zero", ZERO), graph.node("Shape", [flat])])
            rounded = graph.node("QuantizeLinear", [rows, flat, zeros], axis=0)
            self._rounded = (x, rounded, scales, graph.node("Shape", [x], start=0, end=2))
        return self._rounded[1:]


def round_rows(part: FloatPart) -> tuple[Array, Array]:
    """Return the rows of a weight as int8 `[N, K]`, and their scales `[N]` fp32."""
    values = np.empty((part.out_features, part.in_features), dtype=np.int8)
    scales = np.empty(part.out_features, dtype=np.float32)
    row = 0
    for block in part.blocks():
        rows = block.astype(np.float32)
        largest = np.abs(rows).max(axis=1)
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.float32(LARGEST) / largest
        inverse[np.isinf(inverse)] = 0  # a row of zeros, or of numbers too small to divide by
        values[row : row + len(rows)] = np.rint(rows * inverse[:, None])
        scales[row : row + len(rows)] = largest / np.float32(LARGEST)
        row += len(rows)
    return values, scales
