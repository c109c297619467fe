"""Write the trained weights as a Hugging Face LLaVA-OneVision checkpoint: bf16 safetensors, settings, tokenizer."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from training import tiles, tokenizer
from training.model import Sizes, Weights, shapes

PINPOINTS = [[rows * tiles.TILE_PX, columns * tiles.TILE_PX] for rows, columns in tiles.GRIDS]
ASPECT_RATIO = f"anyres_max_{tiles.MAX_TILES}"


def config(sizes: Sizes, ids: dict[str, int]) -> dict[str, Any]:
    """Return config.json."""
    end = {"bos_token_id": None, "eos_token_id": ids[tokenizer.IM_END], "pad_token_id": ids[tokenizer.PAD]}
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "dtype": "bfloat16",
        "image_grid_pinpoints": PINPOINTS,
        "image_token_index": ids[tokenizer.IMAGE],
        "video_token_index": sizes.vocab - 1,
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "use_image_newline_parameter": True,
        "vision_aspect_ratio": ASPECT_RATIO,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "text_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "dtype": "bfloat16",
            "vocab_size": sizes.vocab,
            "hidden_size": sizes.hidden,
            "intermediate_size": sizes.mlp,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": sizes.rope_theta,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "max_window_layers": sizes.layers,
            **end,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "dtype": "bfloat16",
            "hidden_size": sizes.vision_hidden,
            "intermediate_size": sizes.vision_mlp,
            "num_hidden_layers": sizes.vision_layers,
            "num_attention_heads": sizes.vision_heads,
            "num_channels": 3,
            "image_size": tiles.TILE_PX,
            "patch_size": tiles.PATCH_PX,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "vision_use_head": False,
        },
        **end,
    }


PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "LlavaOnevisionImageProcessor",
    "processor_class": "LlavaOnevisionProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_pad": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "size": {"height": tiles.TILE_PX, "width": tiles.TILE_PX},
    "image_grid_pinpoints": PINPOINTS,
}
PROCESSOR: dict[str, Any] = {
    "processor_class": "LlavaOnevisionProcessor",
    "num_image_tokens": tiles.PATCHES,
    "image_token": tokenizer.IMAGE,
    "video_token": "<video>",
    "vision_aspect_ratio": ASPECT_RATIO,
    "vision_feature_select_strategy": "full",
}


def save(weights: Weights, sizes: Sizes, folder: Path) -> None:
    """Write the checkpoint's machine-readable files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    table = shapes(sizes)
    assert weights.keys() == table.keys(), f"Bug: {weights.keys() ^ table.keys()}"
    tensors = {name: weights[name].detach().bfloat16().view(shape).contiguous() for name, shape in table.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    tokens = tokenizer.save(folder)
    ids = token_ids(tokens)
    generation = {"eos_token_id": ids[tokenizer.IM_END], "pad_token_id": ids[tokenizer.PAD], "do_sample": False}
    for name, document in (
        ("config.json", config(sizes, ids)),
        ("generation_config.json", generation),
        ("preprocessor_config.json", PREPROCESSOR),
        ("processor_config.json", PROCESSOR),
    ):
        (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def token_ids(tokens: Tokenizer) -> dict[str, int]:
    """Return the ids of the special tokens."""
    vocabulary: dict[str, int] = tokens.get_vocab()
    return {token: vocabulary[token] for token in tokenizer.SPECIAL}


def load_average(state: Path) -> Weights:
    """Return the averaged weights of a run's `state.pt`, without the training-only heads."""
    saved: dict[str, Any] = torch.load(state)
    weights = saved["average"] or saved["weights"]
    return {name: tensor for name, tensor in weights.items() if not name.startswith("heads.")}


def main() -> None:
    """Write the averaged weights of a run, finished or not, as a checkpoint."""
    parser = argparse.ArgumentParser(description="Write the averaged weights of a training run as a checkpoint.")
    parser.add_argument("state", type=Path, help="training/run/state.pt")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    save(load_average(options.state), Sizes(), options.out)


if __name__ == "__main__":
    main()
