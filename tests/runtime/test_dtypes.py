"""Number formats: what is finite, and how values are rounded into them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from varco_export.reading.tensor import NUMPY_DTYPES
from varco_runtime.dtypes import is_finite, to_stored


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp8"])
def test_what_is_finite_is_what_numpy_calls_so(dtype: Any) -> None:
    numpy = NUMPY_DTYPES[dtype]
    bits = np.arange(256, dtype=np.uint32)
    if dtype != "fp8":
        bits = (bits[:, None] << 8 | np.array([0, 1, 0x7F, 0x80, 0xFF], np.uint32)).reshape(-1)
    values = (bits << 16 | bits).view(np.float32) if dtype == "fp32" else bits.astype(f"u{numpy.itemsize}").view(numpy)
    for index, finite in enumerate(np.isfinite(values.astype(np.float32))):
        assert is_finite(values[index : index + 1], dtype) == finite, values[index]


def test_bf16_is_rounded_to_nearest_even() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(size=4000), [0, -0.0, 1.00390625, 1.01171875]])
    expected = values.astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    assert (to_stored(values.astype(np.float32), "bf16") == expected).all()
