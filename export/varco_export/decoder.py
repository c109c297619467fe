"""The Qwen2 language model, in the order of its forward pass.

Source: transformers `models/qwen2/modeling_qwen2.py`. Query, key and value share one linear, and so do gate and up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from varco_export.checkpoint import Checkpoint
from varco_export.config import TextConfig
from varco_export.dialect import AttentionHeads, Dialect
from varco_export.linear import Linear

Array = np.ndarray[Any, Any]


def emit_decoder(checkpoint: Checkpoint, ops: Dialect, max_context: int, advance: Callable[[], None]) -> None:
    """Emit `inputs_embeds` `[1, S, hidden]` and the caches to `logits` `[1, num_logits, vocab]` of the last positions.

    `advance` is called after each layer and after the head.
    """
    config, tensor, graph = checkpoint.config.text, checkpoint.tensor, ops.graph
    x = graph.input("inputs_embeds", ops.precision.compute, [1, "sequence", config.hidden_size])
    heads = AttentionHeads(
        config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads, config.head_dim
    )
    ops.begin_cache(heads, rotary_tables(config, max_context))

    for index in range(config.num_hidden_layers):
        layer = f"language_model.layers.{index}"
        weight = tensor(f"{layer}.input_layernorm.weight")
        if index == 0:
            residual, h = x, ops.rms_norm(x, weight, config.rms_norm_eps)
        else:
            h, residual = ops.add_rms_norm(x, residual, weight, config.rms_norm_eps)

        attention = f"{layer}.self_attn"
        qkv = Linear(
            f"{attention}.qkv_proj",
            tuple(tensor(f"{attention}.{part}_proj.weight") for part in "qkv"),
            tuple(tensor(f"{attention}.{part}_proj.bias") for part in "qkv"),
        )
        h = ops.cached_attention(ops.linear(h, qkv), index)
        h = ops.linear(h, Linear(f"{attention}.o_proj", (tensor(f"{attention}.o_proj.weight"),)))

        weight = tensor(f"{layer}.post_attention_layernorm.weight")
        h, residual = ops.add_rms_norm(h, residual, weight, config.rms_norm_eps)
        gate_up = Linear(
            f"{layer}.mlp.gate_up_proj",
            (tensor(f"{layer}.mlp.gate_proj.weight"), tensor(f"{layer}.mlp.up_proj.weight")),
        )
        h = ops.silu_gate(ops.linear(h, gate_up), config.intermediate_size)
        x = ops.linear(h, Linear(f"{layer}.mlp.down_proj", (tensor(f"{layer}.mlp.down_proj.weight"),)))
        advance()

    h, _ = ops.add_rms_norm(x, residual, tensor("language_model.norm.weight"), config.rms_norm_eps)
    h = ops.linear(ops.last_tokens(h), Linear("lm_head", (tensor("lm_head.weight"),)), head=True)
    ops.logits(h)
    graph.output("logits", "fp32", [1, "num_logits", config.vocab_size])
    advance()


def rotary_tables(config: TextConfig, num_positions: int) -> tuple[Array, Array]:
    """Cosines and sines `[num_positions, head_dim / 2]` of the rotary embedding, in fp32 arithmetic as in the
    reference.

    Angle of position p and pair i: p * theta^(-2 i / head_dim).
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    inverse_frequencies = np.float32(1) / np.power(np.float32(config.rope_theta), exponents, dtype=np.float32)
    angles = np.arange(num_positions, dtype=np.float32)[:, None] * inverse_frequencies[None, :]
    return np.cos(angles), np.sin(angles)
