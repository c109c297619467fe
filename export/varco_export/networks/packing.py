"""The packing of projected patches into image tokens, as a graph for devices that keep them in their own memory.

What `varco_runtime.picture.packing.pack` does in numpy: each image token is a weighted sum of at most four rows.
"""

from __future__ import annotations

from collections.abc import Callable

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.dialects.dialect import Dialect


def emit_packing(checkpoint: Checkpoint, ops: Dialect, advance: Callable[[], None]) -> None:
    """Emit `image_features` `[T, P, D]`, `indices` and `weights` `[N, 4]` to `image_tokens` `[N, D]`.

    An index counts the rows of all tiles one after the other; the row behind the last is image_newline.

    Args:
        checkpoint: Where image_newline is.
        ops: The operators to write in.
        advance: Called at the end.
    """
    vision, width = checkpoint.config.vision, checkpoint.config.text.hidden_size
    graph, dtype = ops.graph, ops.precision.compute
    num_patches = (vision.image_size // vision.patch_size) ** 2
    features = graph.input("image_features", dtype, ["tiles", num_patches, width])
    indices = graph.input("indices", "int64", ["tokens", 4])
    weights = ops.host_input("weights", ["tokens", 4])

    patches = graph.node("Reshape", [features, graph.ints(-1, width)])  # [T * P, D]
    newline = checkpoint.tensor("image_newline")
    row = graph.weight(newline.name, dtype, (1, width), [newline.read()[None]])
    rows = graph.node("Concat", [patches, row], axis=0)  # [T * P + 1, D]
    picked = graph.node("Gather", [rows, indices], axis=0)  # [N, 4, D]
    ops.weighted_sum(picked, weights, "image_tokens")
    graph.output("image_tokens", dtype, ["tokens", width])
    advance()
