"""Weights of a checkpoint as torch tensors, and torch modules filled with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.quantize.rotated import TurnedTensor
from varco_export.reading.tensor import TORCH_NAMES, Dtype, Tensor
from varco_runtime.dtypes import Array

Module = TypeVar("Module", bound=torch.nn.Module)

TORCH_DTYPES: dict[Dtype, torch.dtype] = {dtype: getattr(torch, name) for dtype, name in TORCH_NAMES.items()}


def read_weight(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """Return a tensor in fp32, which holds every bf16 and fp16 value exactly.

    One that is turned is not rounded to its number format.
    """
    tensor = checkpoint.tensor(name)
    return torch.from_numpy(exact_rows(tensor, 0, tensor.num_rows).reshape(tensor.shape))


def exact_rows(tensor: Tensor, start: int, stop: int) -> Array:
    """Return rows of a tensor in fp32, a turned one's not rounded to its number format."""
    if isinstance(tensor, TurnedTensor):
        return tensor.exact_rows(start, stop)
    return tensor.rows(start, stop).astype(np.float32)


def load_weights(build: Callable[[], Module], checkpoint: Checkpoint, prefix: str, device: torch.device) -> Module:
    """Return a module in fp32 with a checkpoint's weights. Buffers are not set.

    Args:
        build: Makes the module.
        checkpoint: Where the weights are.
        prefix: In front of the module's own names of its weights.
        device: Where the weights go.
    """
    with torch.device("meta"):  # no memory, and no time for random values
        module = build()
    weights = {name: read_weight(checkpoint, prefix + name).to(device) for name in module.state_dict()}
    module.load_state_dict(weights, assign=True)
    return module.eval().requires_grad_(False)
