"""The tensors that the network needs, by canonical name, with the shapes that a configuration asks for."""

from __future__ import annotations

from varco_export.config.model_config import ModelConfig, Shapes, TextConfig, VisionConfig
from varco_runtime.errors import CheckpointError


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that the network needs by canonical name, in the order of its forward pass."""
    vision, text = config.vision, config.text
    shapes = _vision_shapes(vision)
    for name, columns in (("linear_1", vision.hidden_size), ("linear_2", text.hidden_size)):
        shapes[f"multi_modal_projector.{name}.weight"] = (text.hidden_size, columns)
        shapes[f"multi_modal_projector.{name}.bias"] = (text.hidden_size,)
    shapes["image_newline"] = (text.hidden_size,)
    return shapes | _text_shapes(text)


def check_head_dim(config: ModelConfig, shapes: Shapes) -> None:
    """Refuse weights whose heads have another size than config.json means by naming none.

    Args:
        config: The configuration.
        shapes: Shapes of the checkpoint's tensors by canonical name.
    """
    text, raw = config.text, config.raw
    if raw.get("text_config", raw).get("head_dim") is not None:
        return
    attention = "language_model.layers.0.self_attn"
    queries, keys = (shapes.get(f"{attention}.{part}_proj.weight", (0, 0))[0] for part in "qk")
    found = queries // text.num_attention_heads
    fits = (queries, keys) == (found * text.num_attention_heads, found * text.num_key_value_heads)
    if text.qk_norm:
        fits = fits and shapes.get(f"{attention}.q_norm.weight") == (found,)
    if found and fits and found != text.head_dim:
        raise CheckpointError(
            f"config.json names no head_dim, which means {text.head_dim}, and the weights have heads of {found}, "
            f"expected both to agree. Add head_dim {found} to text_config, as in the original repository."
        )


def _vision_shapes(vision: VisionConfig) -> dict[str, tuple[int, ...]]:
    width, inner = vision.hidden_size, vision.intermediate_size
    num_patches = (vision.image_size // vision.patch_size) ** 2
    embeddings = "vision_tower.embeddings"
    shapes: dict[str, tuple[int, ...]] = {
        f"{embeddings}.patch_embedding.weight": (width, 3, vision.patch_size, vision.patch_size),
        f"{embeddings}.patch_embedding.bias": (width,),
        f"{embeddings}.position_embedding.weight": (num_patches, width),
    }
    for index in range(vision.num_hidden_layers):
        layer = f"vision_tower.encoder.layers.{index}"
        for norm in ("layer_norm1", "layer_norm2"):
            shapes[f"{layer}.{norm}.weight"] = shapes[f"{layer}.{norm}.bias"] = (width,)
        linears = [(f"self_attn.{name}", width, width) for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
        for name, rows, columns in [*linears, ("mlp.fc1", inner, width), ("mlp.fc2", width, inner)]:
            shapes[f"{layer}.{name}.weight"] = (rows, columns)
            shapes[f"{layer}.{name}.bias"] = (rows,)
    return shapes


def _text_shapes(text: TextConfig) -> dict[str, tuple[int, ...]]:
    width, inner = text.hidden_size, text.intermediate_size
    queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    shapes: dict[str, tuple[int, ...]] = {"language_model.embed_tokens.weight": (text.vocab_size, width)}
    for index in range(text.num_hidden_layers):
        layer = f"language_model.layers.{index}"
        shapes[f"{layer}.input_layernorm.weight"] = (width,)
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            shapes[f"{layer}.self_attn.{name}.weight"] = (rows, width)
            if text.qkv_bias:
                shapes[f"{layer}.self_attn.{name}.bias"] = (rows,)
        if text.qk_norm:
            shapes[f"{layer}.self_attn.q_norm.weight"] = shapes[f"{layer}.self_attn.k_norm.weight"] = (text.head_dim,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (width, queries)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (width,)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (inner, width)
        shapes[f"{layer}.mlp.up_proj.weight"] = (inner, width)
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, inner)
    shapes["language_model.norm.weight"] = (width,)
    if not text.tie_word_embeddings:
        shapes["lm_head.weight"] = (text.vocab_size, width)
    return shapes
