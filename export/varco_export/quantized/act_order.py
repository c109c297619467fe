"""Activation order: GPTQ may quantize the input features of a linear in another order than they come in.

`g_idx[k]` is the group of scales that input feature k belongs to. Sorting the features by group once, when the weights
are written, makes every group a run of neighbours again; the linear then takes its input in the sorted order. Nothing
is looked up by `g_idx` at run time.
"""

from __future__ import annotations

import numpy as np

from varco_export.reading.tensor import Tensor
from varco_runtime.dtypes import Array
from varco_runtime.errors import CheckpointError


def sorted_by_group(g_idx: Tensor, group_size: int) -> Array | None:
    """Return the input features `[K]` sorted by group; None where they are already.

    Raises:
        CheckpointError: A group is none, or has another size than `group_size`.
    """
    groups = g_idx.read()
    (width,) = groups.shape
    num_groups = -(-width // group_size)
    low, high = int(groups.min()), int(groups.max())
    if low < 0 or high >= num_groups:
        raise CheckpointError(
            f"{g_idx.name} names group {low if low < 0 else high}, expected 0 to {num_groups - 1}. Copy the shards "
            "again."
        )
    order = np.argsort(groups, kind="stable")
    if not np.array_equal(groups[order], np.arange(width) // group_size):
        raise CheckpointError(
            f"{g_idx.name} does not give each group {group_size} input features, expected it to. Copy the shards again."
        )
    return None if np.array_equal(order, np.arange(width)) else order.astype(np.int32)
