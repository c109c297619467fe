"""What a graph does to a linear that is not exact, in numpy: the rounding of its weight and of its input."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from varco_export.dialects.linear import quantize_rows
from varco_runtime.dtypes import Array

FP8_MAX = 448
"""The largest E4M3 number."""


@dataclass(frozen=True, slots=True)
class LinearFormat:
    """What a graph does to a linear that is not exact.

    `kind`: `int4`, `int8` or `fp8`, integers in blocks of `block_size` input features, 0 for whole rows. Where
    `rounds_weight` the exporter made them by round-to-nearest, for TensorRT with `positive_scales`; else they are the
    checkpoint's own.
    `activations`: what the input is rounded to, `float` for nothing; `input_scale`: the scale of `fp8` activations
    where it is fixed, else each token has its own.
    """

    kind: str = "float"
    block_size: int = 0
    positive_scales: bool = False
    rounds_weight: bool = False
    activations: str = "float"
    input_scale: float | None = None

    def weight(self, rows: Array) -> Array:
        """Rows `[n, k]` fp32 as the graph should hold them."""
        if not self.rounds_weight:
            return rows
        if self.kind == "fp8":
            scales = np.maximum(np.abs(rows).max(axis=1, keepdims=True) / np.float32(FP8_MAX), np.float32(1e-12))
            return np.asarray(_to_fp8(rows / scales) * scales)
        half = 1 << (int(self.kind.removeprefix("int")) - 1)
        if self.block_size == 0:  # symmetric: -127 .. 127 of the largest magnitude
            largest = np.abs(rows).max(axis=1, keepdims=True)
            # The inverse, as the exporter takes it: weights of 16 bits often lie halfway between two integers.
            inverse = np.divide(np.float32(half - 1), largest, out=np.zeros_like(largest), where=largest > 0)
            whole: Array = np.rint(rows * inverse) * (largest / np.float32(half - 1))
            return whole
        if self.positive_scales:
            blocks = rows.reshape(len(rows), -1, self.block_size)
            high, low = blocks.max(axis=2, keepdims=True), blocks.min(axis=2, keepdims=True)
            scales = np.maximum(np.maximum(high / np.float32(half - 1), low / np.float32(-half)), np.float32(1e-12))
            values = np.clip(np.rint(blocks / scales), -half, half - 1)
        else:
            unsigned, scales = quantize_rows(rows, int(self.kind.removeprefix("int")), self.block_size)
            values, scales = unsigned.astype(np.float32) - np.float32(half), scales[:, :, None]
        rounded: Array = (values * scales).reshape(len(rows), -1)[:, : rows.shape[1]]
        return rounded

    @property
    def cuts_off(self) -> bool:
        """Whether a fixed scale bounds the input."""
        return self.activations == "fp8" and self.input_scale is not None

    def bounded(self, x: Array) -> Array:
        """Activations `[n, k]` within what a fixed scale can hold, not rounded: +-448 times the scale."""
        if not self.cuts_off:
            return x
        bound = np.float32(FP8_MAX) * np.float32(self.input_scale)
        cut: Array = np.clip(x, -bound, bound)
        return cut

    def input(self, x: Array) -> Array:
        """Activations `[n, k]` as a kernel may multiply them: int8 as onnxruntime's CPU does on x86, in the weight's
        blocks; FP8 E4M3 as vLLM does."""
        if self.activations == "int8":
            blocks = np.pad(x, ((0, 0), (0, -x.shape[1] % self.block_size))).reshape(len(x), -1, self.block_size)
            scales = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
            rounded = np.rint(np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales > 0)) * scales
            flat: Array = rounded.reshape(len(x), -1)[:, : x.shape[1]]
            return flat
        if self.activations == "fp8":
            largest = np.abs(x).max(axis=1, keepdims=True)
            scale = np.maximum(largest / FP8_MAX, 1e-12) if self.input_scale is None else np.array(self.input_scale)
            return _to_fp8(x / scale.astype(np.float32)) * scale.astype(np.float32)
        return x


def _to_fp8(x: Array) -> Array:
    """The nearest FP8 (E4M3) numbers, in fp32."""
    return np.clip(x, -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
