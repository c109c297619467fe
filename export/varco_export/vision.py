"""The SigLIP vision tower, in the order of its forward pass.

Source: transformers `models/siglip/modeling_siglip.py`. The features are the last running layer's output before
`post_layernorm`, as LLaVA-OneVision reads them (`vision_feature_layer` -1, and LLaVA-NeXT's dropped 27th layer).
"""

from __future__ import annotations

from collections.abc import Callable

from varco_export.checkpoint import Checkpoint
from varco_export.dialect import Dialect
from varco_export.linear import Linear


def emit_vision(checkpoint: Checkpoint, ops: Dialect, advance: Callable[[], None]) -> None:
    """Emit `pixel_values` `[T, 3, S, S]` to `patch_features` `[T, P, hidden]`. `advance` is called after each layer."""
    config, tensor = checkpoint.config.vision, checkpoint.tensor
    num_patches = (config.image_size // config.patch_size) ** 2
    pixel_values = ops.host_input("pixel_values", ["tiles", 3, config.image_size, config.image_size])

    embeddings = "vision_tower.embeddings"
    kernel, bias = tensor(f"{embeddings}.patch_embedding.weight"), tensor(f"{embeddings}.patch_embedding.bias")
    x = ops.patches(pixel_values, kernel, bias, num_patches)
    x = ops.add(x, ops.vector(tensor(f"{embeddings}.position_embedding.weight")))  # [T, P, C] + [P, C]

    for index in range(config.num_hidden_layers):
        layer = f"vision_tower.encoder.layers.{index}"

        def linear(x: str, name: str, layer: str = layer) -> str:
            name = f"{layer}.{name}"
            return ops.linear(x, Linear(name, (tensor(f"{name}.weight"),), (tensor(f"{name}.bias"),)))

        def norm(x: str, name: str, layer: str = layer) -> str:
            name = f"{layer}.{name}"
            return ops.layer_norm(x, tensor(f"{name}.weight"), tensor(f"{name}.bias"), config.layer_norm_eps)

        h = norm(x, "layer_norm1")
        q, k, v = (linear(h, f"self_attn.{part}_proj") for part in "qkv")
        h = ops.attention((q, k, v), config.num_attention_heads)
        x = ops.add(x, linear(h, "self_attn.out_proj"))

        h = linear(norm(x, "layer_norm2"), "mlp.fc1")
        h = linear(ops.gelu(h, "tanh"), "mlp.fc2")
        x = ops.add(x, h)
        advance()

    ops.output("patch_features", x, ["tiles", num_patches, config.hidden_size])
    checkpoint.skip("vision_tower.post_layernorm.", "the features are taken before it")
