"""Safetensors shards, written as their tensors are produced; a shard is there when it is complete.

Layout: 8 bytes little-endian header size, JSON header padded to 8 bytes, tensors without gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from varco_export.reading.tensor import SAFETENSORS_DTYPES, Tensor
from varco_export.writing.disk import sync

_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
_TORCH_NAMES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int32: "I32",
    torch.int64: "I64",
}
_SIZES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "I32": 4, "I64": 8}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor to be written: safetensors' word for its dtype, its shape, and its values in blocks."""

    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[NDArray[Any]]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _SIZES[self.dtype]

    @classmethod
    def of_torch(cls, tensor: torch.Tensor) -> Stored:
        values = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        return cls(_TORCH_NAMES[tensor.dtype], tuple(tensor.shape), lambda: [values])

    @classmethod
    def of_checkpoint(cls, tensor: Tensor) -> Stored:
        """A copy, in the dtype it is stored in."""
        return cls(_NAMES[tensor.dtype], tensor.shape, tensor.blocks)


def write_shard(path: Path, tensors: Mapping[str, Stored]) -> None:
    """Write the tensors under their names on disk, in their order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, stored in tensors.items():
        start, end = end, end + stored.nbytes
        header[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for stored in tensors.values():
            for block in stored.blocks():
                file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
        assert file.tell() == 8 + len(text) + end, f"Bug: {path.name} has other sizes than its header says"
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync(path.parent)  # before what it replaces is removed


def read_sizes(path: Path) -> dict[str, int]:
    """Bytes of every tensor of a shard that `write_shard` wrote, by name."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__")
    return {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items()}
