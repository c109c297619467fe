"""What the exporter knows about a checkpoint apart from its weights.

Two families carry the same network: `hf`, transformers' LlavaOnevisionForConditionalGeneration, and `llava_next`,
LLaVA-NeXT's LlavaQwenForCausalLM. `config_reader.py` makes one `ModelConfig` of either's files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from varco_runtime.bundle.settings import ImageSettings

Family = Literal["hf", "llava_next"]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The SigLIP tower.

    `num_hidden_layers` counts the layers that run: the features are the output of the last of them, before
    post_layernorm.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    layer_norm_eps: float


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The Qwen2 or Qwen3 language model: SiLU, plain rotary positions, o and MLP without bias.

    `qkv_bias`: q, k and v have one (Qwen2). `qk_norm`: each head of q and of k is normalized before it turns (Qwen3).
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool = True
    qk_norm: bool = False


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything the exporter needs to know about a checkpoint apart from its weights.

    Args:
        family: Whose format it has.
        vision: The vision tower.
        text: The language model.
        projector_hidden_act: The function between the projector's linears.
        image: How a picture becomes tiles.
        image_token_id: The id that stands for a picture; None where the checkpoint names none (LLaVA-NeXT splits
            `<image>` out of the text).
        eos_token_id: The ids of config.json, usually one; generation_config.json may name others.
        raw: config.json as read.
        num_dropped_vision_layers: How many more layers than those that run the checkpoint may hold.
        notes: Where weights and files disagreed and which won, a sentence each.
    """

    family: Family
    vision: VisionConfig
    text: TextConfig
    projector_hidden_act: str
    image: ImageSettings
    image_token_id: int | None
    eos_token_id: tuple[int, ...]
    raw: dict[str, Any]
    num_dropped_vision_layers: int = 0
    notes: tuple[str, ...] = ()
