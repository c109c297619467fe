"""A tensor of a safetensors shard, read when asked for.

Bytes come with `preadv` into fresh arrays rather than mapped, large tensors in blocks, so that peak resident memory is
one block.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from varco_runtime.dtypes import ITEM_BYTES, STORAGE, Array, is_finite
from varco_runtime.errors import CheckpointError

Dtype = Literal["bf16", "fp16", "fp32", "fp8", "int32", "int64"]

NUMPY_DTYPES: dict[Dtype, np.dtype[Any]] = {
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp16": np.dtype(STORAGE["fp16"]),
    "fp32": np.dtype(STORAGE["fp32"]),
    "fp8": np.dtype(ml_dtypes.float8_e4m3fn),
    "int32": np.dtype(STORAGE["int32"]),
    "int64": np.dtype(STORAGE["int64"]),
}
"""numpy's types for them: values to compute with, where the runtime holds the bits of bf16 and fp8."""
SAFETENSORS_DTYPES: dict[str, Dtype] = {
    "BF16": "bf16",
    "F16": "fp16",
    "F32": "fp32",
    "F8_E4M3": "fp8",
    "I32": "int32",
    "I64": "int64",
}
SAFETENSORS_NAMES: dict[Dtype, str] = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
TORCH_NAMES: dict[Dtype, str] = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "fp8": "float8_e4m3fn",
    "int32": "int32",
    "int64": "int64",
}
FLOAT_DTYPES: tuple[Dtype, ...] = ("bf16", "fp16", "fp32")
BLOCK_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a shard, not read yet. `name` is canonical; `offset` counts from the start of the file."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def num_rows(self) -> int:
        return self.shape[0] if self.shape else 1

    def read(self) -> Array:
        """Read all of it, in the dtype it is stored in."""
        return self.rows(0, self.num_rows).reshape(self.shape)

    def rows(self, start: int, stop: int) -> Array:
        """Read rows `start` to `stop`: `[stop - start, *shape[1:]]`. Raises CheckpointError for NaN and infinity."""
        assert 0 <= start <= stop <= self.num_rows, f"Bug: rows {start}:{stop} of {self.shape}"
        array = np.empty((stop - start, *self.shape[1:]), NUMPY_DTYPES[self.dtype])
        row_bytes = self.nbytes // max(self.num_rows, 1)
        _read_exactly(self, [(self.offset + start * row_bytes, array)])
        self._check_finite(array)
        return array

    def columns(self, start: int, stop: int) -> Array:
        """Read columns `start` to `stop` of a matrix: `[rows, stop - start]`. Raises CheckpointError for NaN and
        infinity.
        """
        num_rows, width = self.shape
        assert 0 <= start <= stop <= width, f"Bug: columns {start}:{stop} of {self.shape}"
        array = np.empty((num_rows, stop - start), NUMPY_DTYPES[self.dtype])
        size = array.itemsize
        _read_exactly(self, ((self.offset + (row * width + start) * size, array[row]) for row in range(num_rows)))
        self._check_finite(array)
        return array

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Array]:
        """Yield every row once, in order, in arrays of at most `max_bytes` (of one row where a row is larger)."""
        step = max(1, max_bytes * self.num_rows // max(self.nbytes, 1))
        for start in range(0, self.num_rows, step):
            yield self.rows(start, min(start + step, self.num_rows))

    def column_blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Array]:
        """Yield every column of a matrix once, in order, in arrays of at most `max_bytes` (of one column at least)."""
        width = self.shape[1]
        step = max(1, max_bytes * width // max(self.nbytes, 1))
        for start in range(0, width, step):
            yield self.columns(start, min(start + step, width))

    def _check_finite(self, array: Array) -> None:
        if not is_finite(array, self.dtype):
            raise CheckpointError(
                f"{self.name} holds NaN or infinity in {self.path.name}, expected finite numbers. Copy the file again, "
                "or use a checkpoint from before its training diverged."
            )


def _read_exactly(tensor: Tensor, spans: Iterable[tuple[int, Array]]) -> None:
    """Fill each array with the bytes of the tensor's file that begin at its offset."""
    path = tensor.path
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO fails at once
        try:
            missing = max((_fill(descriptor, offset, array) for offset, array in spans), default=0)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}). Check the file and its disk.") from None
    if missing:
        raise CheckpointError(
            f"{path.name} was truncated while {tensor.name} was read, expected {missing} more bytes. Copy it again."
        )


def _fill(descriptor: int, offset: int, array: Array) -> int:
    """Read into `array` and return how many bytes the file lacks."""
    view = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done : done + (1 << 30)]], offset + done)
        if count == 0:
            break
        done += count
    return len(view) - done
