"""The Qwen2 or Qwen3 language model, in the order of its forward pass.

Source: transformers `models/qwen2/modeling_qwen2.py` and `models/qwen3/modeling_qwen3.py`, which differ in attention
alone: Qwen2's q, k and v have a bias, Qwen3's heads of q and k a norm in front of the rotary positions. Query, key and
value share one linear, and so do gate and up.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.config.model_config import TextConfig
from varco_export.dialects.dialect import AttentionHeads, Dialect, HeadNorms
from varco_export.dialects.linear import Linear, fold_order
from varco_runtime.bundle.graph_contract import BATCH
from varco_runtime.dtypes import Array


def emit_decoder(checkpoint: Checkpoint, ops: Dialect, max_context: int, advance: Callable[[], None]) -> None:
    """Emit embeddings `[B, S, hidden]` and the caches to `logits` `[B, num_logits, vocab]` of the last positions.

    Args:
        checkpoint: Where the weights are.
        ops: The operators to write in.
        max_context: Positions that the rotary tables hold.
        advance: Called after each layer and after the head.
    """
    config, tensor, weight, graph = checkpoint.config.text, checkpoint.tensor, checkpoint.weight, ops.graph
    x = ops.embeddings(tensor("language_model.embed_tokens.weight"))
    heads = AttentionHeads(
        config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads, config.head_dim
    )
    ops.begin_cache(heads, rotary_tables(config, max_context))

    for index in range(config.num_hidden_layers):
        layer = f"language_model.layers.{index}"
        norm = tensor(f"{layer}.input_layernorm.weight")
        if index == 0:
            residual, h = x, ops.rms_norm(x, norm, config.rms_norm_eps)
        else:
            h, residual = ops.add_rms_norm(x, residual, norm, config.rms_norm_eps)

        attention = f"{layer}.self_attn"
        qkv = Linear(
            f"{attention}.qkv_proj",
            tuple(weight(f"{attention}.{part}_proj") for part in "qkv"),
            tuple(tensor(f"{attention}.{part}_proj.bias") for part in "qkv") if config.qkv_bias else (),
        )
        norms = None
        if config.qk_norm:
            query, key = (tensor(f"{attention}.{part}_norm.weight") for part in "qk")
            norms = HeadNorms(query, key, config.rms_norm_eps)
        h = ops.cached_attention(ops.linear(h, qkv), index, norms)
        h = ops.linear(h, Linear(f"{attention}.o_proj", (weight(f"{attention}.o_proj"),)))

        norm = tensor(f"{layer}.post_attention_layernorm.weight")
        h, residual = ops.add_rms_norm(h, residual, norm, config.rms_norm_eps)
        mlp = f"{layer}.mlp"
        gate_up = Linear(f"{mlp}.gate_up_proj", (weight(f"{mlp}.gate_proj"), weight(f"{mlp}.up_proj")))
        down = Linear(f"{mlp}.down_proj", (weight(f"{mlp}.down_proj"),))
        gate_up, down = fold_order(gate_up, down)
        h = ops.gated(h, gate_up, config.intermediate_size)
        x = ops.linear(h, down)
        advance()

    h, _ = ops.add_rms_norm(x, residual, tensor("language_model.norm.weight"), config.rms_norm_eps)
    h = ops.linear(ops.last_tokens(h), Linear("lm_head", (weight("lm_head"),)), head=True)
    ops.logits(h)
    graph.output("logits", "fp32", [BATCH, "num_logits", config.vocab_size])
    advance()


def rotary_tables(config: TextConfig, num_positions: int) -> tuple[Array, Array]:
    """Return cosines and sines `[num_positions, head_dim / 2]` of the rotary embedding.

    Angle of position p and pair i: p * theta^(-2 i / head_dim), in fp32 as in the reference. Powers, cosines and sines
    are taken in fp64 and rounded: that is nearer to torch's than numpy's fp32 functions, and alike on every processor.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    powers = np.power(np.float64(config.rope_theta), exponents.astype(np.float64)).astype(np.float32)
    inverse_frequencies = np.float32(1) / powers
    angles = (np.arange(num_positions, dtype=np.float32)[:, None] * inverse_frequencies).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
