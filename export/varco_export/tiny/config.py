"""The JSON files of a tiny checkpoint: configuration, picture processor, generation."""

from __future__ import annotations

from typing import Any

from varco_export.reading.tensor import TORCH_NAMES
from varco_export.tiny.options import TinyOptions, pinpoints
from varco_export.tiny.tokenizer import token_ids


def config_json(options: TinyOptions) -> dict[str, Any]:
    """Return config.json."""
    ids = token_ids(options.video)
    text: dict[str, Any] = {
        "hidden_size": options.hidden_size,
        "intermediate_size": options.intermediate_size,
        "num_hidden_layers": options.num_hidden_layers,
        "num_attention_heads": options.num_attention_heads,
        "num_key_value_heads": options.num_key_value_heads,
        "max_position_embeddings": options.max_position_embeddings,
        "max_window_layers": options.num_hidden_layers,
        "rope_theta": options.rope_theta,
        "rms_norm_eps": 1e-6,
        "vocab_size": options.vocab_size,
        "tie_word_embeddings": options.tie_word_embeddings,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    if options.head_dim is not None:
        text["head_dim"] = options.head_dim
    if options.text == "qwen3":
        text |= {"attention_bias": False, "head_dim": options.to_config().text.head_dim}
    vision: dict[str, Any] = {
        "model_type": "siglip_vision_model",
        "hidden_size": options.vision_hidden_size,
        "intermediate_size": options.vision_intermediate_size,
        "num_hidden_layers": options.num_vision_layers,
        "num_attention_heads": options.num_vision_heads,
        "image_size": options.image_size,
        "patch_size": options.patch_size,
        "vision_use_head": False,
    }
    dtype = TORCH_NAMES[options.dtype]
    if options.format == "hf":
        extra = int(options.extra_vision_layer)
        new = options.names == "new"
        if new:
            text["rope_parameters"] = {"rope_type": "default", "rope_theta": text.pop("rope_theta")}
        return {
            "architectures": ["LlavaOnevisionForConditionalGeneration"],
            "model_type": "llava_onevision",
            "dtype" if new else "torch_dtype": dtype,
            "image_token_id" if new else "image_token_index": ids["<image>"],
            "video_token_id" if new else "video_token_index": ids["<video>" if options.video else "[UNK]"],
            "image_grid_pinpoints": [list(pair) for pair in pinpoints(options)],
            "projector_hidden_act": "gelu",
            "text_config": {"model_type": options.text, **text},
            "tie_word_embeddings": options.tie_word_embeddings,
            "vision_aspect_ratio": _aspect_ratio(options),
            "vision_config": {**vision, "num_hidden_layers": options.num_vision_layers + extra},
            "vision_feature_layer": -1 - extra,
            "vision_feature_select_strategy": "full",
        }
    video = {"mm_spatial_pool_mode": "bilinear"} if options.video else {}
    return {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava_qwen",
        "torch_dtype": dtype,
        **text,
        "image_aspect_ratio": _aspect_ratio(options),
        "image_grid_pinpoints": [[width, height] for height, width in pinpoints(options)],
        "mm_hidden_size": options.vision_hidden_size,
        "mm_newline_position": "one_token",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "varco-edge/tiny-siglip",
        "vision_config": vision,
        **video,
    }


def preprocessor_json(options: TinyOptions) -> dict[str, Any]:
    """Return preprocessor_config.json."""
    return {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_grid_pinpoints": [list(pair) for pair in pinpoints(options)],
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": options.image_size, "width": options.image_size},
    }


def processor_json(options: TinyOptions) -> dict[str, Any]:
    """Return processor_config.json."""
    return {
        "processor_class": "LlavaOnevisionProcessor",
        "image_token": "<image>",
        "video_token": "<video>",
        "num_image_tokens": (options.image_size // options.patch_size) ** 2,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": _aspect_ratio(options),
    }


def _aspect_ratio(options: TinyOptions) -> str:
    return "anyres" if options.max_grid_tiles is None else f"anyres_max_{options.max_grid_tiles}"


def generation_json(options: TinyOptions) -> dict[str, Any]:
    """Return generation_config.json."""
    ids = token_ids(options.video)
    generation: dict[str, Any] = {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    if options.repetition_penalty != 1.0:
        generation["repetition_penalty"] = options.repetition_penalty
    return generation
