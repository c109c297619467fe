"""FP8 (E4M3) weights: floats rounded row by row while they stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import ml_dtypes
import numpy as np

from varco_runtime.dtypes import Array

FP8_MAX = 448
"""The largest E4M3 number."""
SMALLEST_SCALE = float(np.finfo(np.float16).smallest_subnormal)
"""TensorRT takes positive scales alone; this stands for the zero of a row or block of zeros."""
_SLAB_VALUES = 2 << 20


def slabs(blocks: Iterable[Array], width: int) -> Iterator[Array]:
    """Cut blocks of rows to 8 MiB of fp32: work arrays stay in reach of the caches and far below a large tensor."""
    step = max(1, _SLAB_VALUES // width)
    for block in blocks:
        for start in range(0, len(block), step):
            yield block[start : start + step]


def round_to_fp8(blocks: Iterable[Array], scales: Array) -> Iterator[Array]:
    """Yield floats `[rows, k]` rounded to the nearest FP8; the largest of a row becomes 448.

    Args:
        blocks: Blocks of rows.
        scales: Filled with one scale per row, `[out_features]`. Its type is the one that the scales are kept in, which
            the rounding takes into account.
    """
    row = 0
    for block in blocks:
        rows = block.astype(np.float32)
        with np.errstate(over="ignore"):  # `Graph.weight` names a scale beyond fp16
            used = np.maximum(np.abs(rows).max(axis=1) / FP8_MAX, SMALLEST_SCALE).astype(scales.dtype)
        scales[row : row + len(rows)] = used
        row += len(rows)
        rows /= used.astype(np.float32)[:, None]
        yield np.clip(rows, -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn)
