"""Activation order: GPTQ may quantise the input features of a linear in another order than they come in.

`g_idx[k]` is the group of scales that input feature k belongs to. Sorting the features by group once, when the weights
are written, makes every group a run of neighbours again; the linear then takes its input in the sorted order. Nothing
is looked up by `g_idx` at run time.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from varco_export.dialects.linear import Linear
from varco_export.quantized.weights import IntegerWeight
from varco_export.reading.tensor import Array, Tensor
from varco_runtime.errors import CheckpointError


def sorted_by_group(g_idx: Tensor, group_size: int) -> Array | None:
    """The input features `[K]` sorted by group; None where they are already."""
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


def fold_order(producer: Linear, consumer: Linear) -> tuple[Linear, Linear]:
    """Let `producer` give its features in the order in which `consumer` reads them, where both can.

    Each weight of the producer (gate, up) gives what the consumer (down) takes, feature by feature. Where the consumer
    has no order of its own, or the producer is not quantised, both come back as they are, and the dialect gathers.
    """
    (weight,) = consumer.weights
    if not isinstance(weight, IntegerWeight) or weight.input_order is None:
        return producer, consumer
    order = weight.input_order
    moved = []
    for part in producer.weights:
        if not isinstance(part, IntegerWeight):
            return producer, consumer
        assert part.shape[0] == len(order), f"Bug: {part.name} gives {part.shape[0]} features, {len(order)} are read"
        moved.append(replace(part, rows=order))
    assert not producer.biases, "Bug: a bias would have to be reordered too"
    return replace(producer, weights=tuple(moved)), replace(consumer, weights=(replace(weight, sorted_input=True),))
