"""The largest of a row on CUDA, in operators whose kernels need no cuDNN: shared by the greedy choice and the draw."""

from __future__ import annotations

import math

import numpy as np

from varco_export.writing.graph import Graph

FloatType = type[np.floating]


def largest(graph: Graph, x: str) -> tuple[str, str]:
    """Return the largest of each row `[..., n]` and its place, the first of equals; both `[..., 1]`."""
    value, place = graph.value("largest"), graph.value("place")
    graph.multi_node("TopK", [x, graph.ints(1)], [value, place], axis=-1, largest=1, sorted=1)
    return value, place


def infinity(graph: Graph, dtype: FloatType) -> str:
    """Return plus infinity, a scalar. It has one type in a graph."""
    return graph.constant("infinity", np.array(np.inf, dtype))


def infinite_for_nan(graph: Graph, x: str, dtype: FloatType) -> str:
    """Put plus infinity in the place of NaN, for which TopK promises no order; NaN is never less than a number."""
    return graph.node("Where", [graph.node("Less", [x, infinity(graph, dtype)]), x, infinity(graph, dtype)])


def block_width(vocab_size: int) -> int:
    """Return the divisor of the vocabulary's size that is nearest to its square root."""
    root = math.sqrt(vocab_size)
    widths = (width for width in range(1, vocab_size + 1) if vocab_size % width == 0)
    return min(widths, key=lambda width: abs(math.log(width / root)))
