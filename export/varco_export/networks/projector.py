"""The projector from vision features to the language model's width: linear, GELU (erf), linear."""

from __future__ import annotations

from collections.abc import Callable

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.dialects.dialect import Dialect
from varco_export.dialects.linear import Linear


def emit_projector(checkpoint: Checkpoint, ops: Dialect, advance: Callable[[], None]) -> None:
    """Emit `patch_features` `[T, P, vision hidden]` to `image_features` `[T, P, text hidden]`.

    Args:
        checkpoint: Where the weights are.
        ops: The operators to write in.
        advance: Called at the end.
    """
    vision, text = checkpoint.config.vision, checkpoint.config.text
    num_patches = (vision.image_size // vision.patch_size) ** 2

    def linear(x: str, index: int) -> str:
        name = f"multi_modal_projector.linear_{index}"
        return ops.linear(x, Linear(name, (checkpoint.tensor(f"{name}.weight"),), (checkpoint.tensor(f"{name}.bias"),)))

    x = ops.graph.input("patch_features", ops.precision.compute, ["tiles", num_patches, vision.hidden_size])
    x = linear(ops.gelu(linear(x, 1), "none"), 2)
    ops.output("image_features", x, ["tiles", num_patches, text.hidden_size])
    advance()
