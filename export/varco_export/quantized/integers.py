"""Unsigned integers of 4 or 8 bits in bytes, low nibble first, as MatMulNBits and all checkpoint formats store them."""

from __future__ import annotations

import numpy as np

from varco_runtime.dtypes import Array


def pack(values: Array, bits: int) -> Array:
    """Pack values `[..., n]` uint8 below 2^bits into bytes `[..., ceil(n * bits / 8)]`; a missing last nibble is 0."""
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    packed: Array = values[..., 0::2] | (values[..., 1::2] << 4)
    return packed


def unpack(packed: Array, bits: int, count: int) -> Array:
    """Unpack the first `count` values of each row of bytes: `[..., bytes]` to `[..., count]` uint8."""
    if bits == 8:
        return packed[..., :count]
    values = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), dtype=np.uint8)
    values[..., 0::2] = packed & 0x0F
    values[..., 1::2] = packed >> 4
    return values[..., :count]


def bytes_per_row(count: int, bits: int) -> int:
    """Return the bytes that `count` values of a row take."""
    return -(-count * bits // 8)


def fit_rows(packed: Array, num_bytes: int) -> Array:
    """Cut rows of bytes, or fill them with zeros, to `num_bytes` each."""
    if packed.shape[1] >= num_bytes:
        return packed[:, :num_bytes]
    return np.pad(packed, ((0, 0), (0, num_bytes - packed.shape[1])))
