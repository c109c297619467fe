"""The SigLIP vision tower, in the order of its forward pass.

Source: transformers `models/siglip/modeling_siglip.py`. The features are the last running layer's output before
`post_layernorm`, as LLaVA-OneVision reads them (`vision_feature_layer` -1, and LLaVA-NeXT's dropped 27th layer).
"""

from __future__ import annotations

from collections.abc import Callable

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.dialects.dialect import Dialect
from varco_export.dialects.linear import Linear
from varco_export.reading.tensor import Tensor


def emit_vision(checkpoint: Checkpoint, ops: Dialect, advance: Callable[[], None]) -> None:
    """Emit `pixel_values` `[T, 3, S, S]` to `patch_features` `[T, P, hidden]`.

    Args:
        checkpoint: Where the weights are.
        ops: The operators to write in.
        advance: Called after each layer.
    """
    config, tensor = checkpoint.config.vision, checkpoint.tensor
    num_patches = (config.image_size // config.patch_size) ** 2
    pixel_values = ops.host_input("pixel_values", ["tiles", 3, config.image_size, config.image_size])

    embeddings = "vision_tower.embeddings"
    kernel, bias = tensor(f"{embeddings}.patch_embedding.weight"), tensor(f"{embeddings}.patch_embedding.bias")
    x = ops.patches(pixel_values, kernel, bias, num_patches)
    x = ops.add(x, ops.vector(tensor(f"{embeddings}.position_embedding.weight")))  # [T, P, C] + [P, C]

    def linear(index: int, name: str) -> Linear:
        name = f"vision_tower.encoder.layers.{index}.{name}"
        return Linear(name, (tensor(f"{name}.weight"),), (tensor(f"{name}.bias"),))

    def norm(index: int, name: str) -> tuple[Tensor, Tensor, float]:
        name = f"vision_tower.encoder.layers.{index}.{name}"
        return tensor(f"{name}.weight"), tensor(f"{name}.bias"), config.layer_norm_eps

    h = ops.layer_norm(x, *norm(0, "layer_norm1"))
    for index in range(config.num_hidden_layers):
        q, k, v = (ops.linear(h, linear(index, f"self_attn.{part}_proj")) for part in "qkv")
        h = ops.attention((q, k, v), config.num_attention_heads)
        h, x = ops.add_linear_norm(x, h, linear(index, "self_attn.out_proj"), *norm(index, "layer_norm2"))
        h = ops.linear_gelu(h, linear(index, "mlp.fc1"))
        fc2 = linear(index, "mlp.fc2")
        if index + 1 < config.num_hidden_layers:
            h, x = ops.add_linear_norm(x, h, fc2, *norm(index + 1, "layer_norm1"))
        else:
            x = ops.add(x, ops.linear(h, fc2))
        advance()

    ops.output("patch_features", x, ["tiles", num_patches, config.hidden_size])
    checkpoint.skip("vision_tower.post_layernorm.", "the features are taken before it")
