"""The token embedding as a graph, for devices that choose and look up the next token without the host."""

from __future__ import annotations

from collections.abc import Callable

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.dialects.dialect import Dialect


def emit_embedding(checkpoint: Checkpoint, ops: Dialect, advance: Callable[[], None]) -> None:
    """Emit `token_ids` `[1, S]` to `inputs_embeds` `[1, S, hidden]`.

    Args:
        checkpoint: Where the token rows are.
        ops: The operators to write in.
        advance: Called at the end.
    """
    graph, dtype, width = ops.graph, ops.precision.compute, checkpoint.config.text.hidden_size
    token_ids = graph.input("token_ids", "int64", [1, "sequence"])
    table = ops.vector(checkpoint.tensor("language_model.embed_tokens.weight"))
    graph.node("Gather", [table, token_ids], output="inputs_embeds", axis=0)
    graph.output("inputs_embeds", dtype, [1, "sequence", width])
    advance()
