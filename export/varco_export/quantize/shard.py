"""Safetensors shards, written as their tensors are produced; a shard is there when it is complete."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from varco_export.quantize.weights import TORCH_DTYPES
from varco_export.reading.tensor import SAFETENSORS_NAMES, Dtype, Tensor
from varco_export.writing.disk import sync
from varco_export.writing.safetensors_header import make_header
from varco_runtime.dtypes import ITEM_BYTES, Array
from varco_runtime.system.files import durable_file

_DTYPES = {torch_dtype: dtype for dtype, torch_dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor to be written: its number format, its shape, and its values in blocks."""

    dtype: Dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Array]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @classmethod
    def of_torch(cls, tensor: torch.Tensor) -> Stored:
        """Describe a tensor on the CPU, in its own format."""
        values = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        return cls(_DTYPES[tensor.dtype], tuple(tensor.shape), lambda: [values])

    @classmethod
    def of_checkpoint(cls, tensor: Tensor) -> Stored:
        """Describe a copy of a tensor, in the format that it is stored in."""
        return cls(tensor.dtype, tensor.shape, tensor.blocks)


def write_shard(path: Path, tensors: Mapping[str, Stored]) -> None:
    """Write the tensors under their names on disk, in their order."""
    header = make_header({name: (SAFETENSORS_NAMES[one.dtype], one.shape, one.nbytes) for name, one in tensors.items()})
    end = len(header) + sum(stored.nbytes for stored in tensors.values())
    with durable_file(path) as file:
        file.write(header)
        for stored in tensors.values():
            for block in stored.blocks():
                file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
        assert file.tell() == end, f"Bug: {path.name} has other sizes than its header says"
    sync(path.parent)  # before what it replaces is removed


def read_sizes(path: Path) -> dict[str, int]:
    """Return the bytes of every tensor of a shard that `write_shard` wrote, by name."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__")
    return {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items()}
