"""The small files of the result: config.json with its quantization_config, prompts, licence and README.

A checkpoint in transformers' format keeps its files. One in LLaVA-NeXT's format becomes one in transformers' format,
as the weights are given transformers' names: the settings are those that the runtime would use, and `<image>` gets the
first free row of the embedding table where the tokenizer has no such token.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.config.prompts import PromptAssets
from varco_export.quantize.options import QuantizeOptions
from varco_export.reading.json_file import MAX_SETTINGS_BYTES, read_head, read_json
from varco_export.writing.json_file import write_json
from varco_runtime import __version__
from varco_runtime.errors import CheckpointError
from varco_runtime.prompt.tokenizer import Tokenizer

MAX_BYTES = 64 << 20
_COPIED = ("*.json", "*.jinja", "*.txt", "LICENSE*", "NOTICE*")
_WRITTEN = ("config.json", "model.safetensors.index.json")


def write_assets(
    folder: Path,
    checkpoint: Checkpoint,
    prompts: PromptAssets,
    options: QuantizeOptions,
    quantization_config: dict[str, Any] | None,
    calibration: str,
) -> None:
    """Write everything but the weights and their index.

    Args:
        folder: Where to.
        checkpoint: The original.
        prompts: Its tokenizer, template and settings.
        options: How it was quantized.
        quantization_config: The entry of that name in config.json; None for a plain checkpoint.
        calibration: A sentence about what it was calibrated with, or nothing.
    """
    _copy(checkpoint.folder, folder)
    if checkpoint.config.family == "hf":
        config = dict(checkpoint.config.raw)
    else:
        config = _to_transformers(folder, checkpoint, prompts)
    if quantization_config is not None:
        config["quantization_config"] = quantization_config
    write_json(folder / "config.json", config)
    readme = read_head(checkpoint.folder / "README.md", MAX_SETTINGS_BYTES)
    (folder / "README.md").write_text(_annotated(readme, checkpoint, options, calibration), encoding="utf-8")


def _copy(source: Path, folder: Path) -> None:
    for pattern in _COPIED:
        for path in sorted(source.glob(pattern)):
            if path.name not in _WRITTEN and path.is_file() and path.stat().st_size <= MAX_BYTES:
                shutil.copyfile(path, folder / path.name)


# --- LLaVA-NeXT to transformers ---------------------------------------------------------------------------------------


def _to_transformers(folder: Path, checkpoint: Checkpoint, prompts: PromptAssets) -> dict[str, Any]:
    """Return config.json in transformers' words, and write the processor's and the tokenizer's files beside it."""
    model, raw = checkpoint.config, checkpoint.config.raw
    image_token_id = _write_tokenizer(folder, checkpoint, prompts)
    (folder / "chat_template.jinja").write_text(prompts.chat_template, encoding="utf-8")
    image, vision, text = model.image, model.vision, model.text
    pinpoints = [list(pair) for pair in image.grid_pinpoints]
    aspect_ratio = "anyres" if image.max_grid_tiles is None else f"anyres_max_{image.max_grid_tiles}"
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            **dict.fromkeys(("do_convert_rgb", "do_normalize", "do_pad", "do_rescale", "do_resize"), True),
            "image_grid_pinpoints": pinpoints,
            "image_mean": list(image.mean),
            "image_std": list(image.std),
            "resample": 3,
            "rescale_factor": image.rescale_factor,
            "size": {"height": image.tile_px, "width": image.tile_px},
        },
    )
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaOnevisionProcessor",
            "image_token": prompts.prompt.image_token,
            "num_image_tokens": image.patches_per_tile,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": aspect_ratio,
        },
    )
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "torch_dtype": raw.get("torch_dtype", raw.get("dtype")),
        "image_token_index": image_token_id,
        "image_grid_pinpoints": pinpoints,
        "projector_hidden_act": model.projector_hidden_act,
        "tie_word_embeddings": text.tie_word_embeddings,
        "vision_aspect_ratio": aspect_ratio,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "text_config": {
            "model_type": "qwen2",
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "max_position_embeddings": text.max_position_embeddings,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": text.rope_theta,
            "vocab_size": text.vocab_size,
            "tie_word_embeddings": text.tie_word_embeddings,
            "bos_token_id": raw.get("bos_token_id"),
            "eos_token_id": list(prompts.generation.eos_token_ids),
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layer_norm_eps": vision.layer_norm_eps,
            "vision_use_head": False,
        },
    }


def _write_tokenizer(folder: Path, checkpoint: Checkpoint, prompts: PromptAssets) -> int:
    """Write tokenizer.json with the image token and return its id; remove other templates than the one used."""
    document = json.loads(prompts.tokenizer_json)
    tokenizer = Tokenizer.from_json(prompts.tokenizer_json)
    token, num_rows = prompts.prompt.image_token, checkpoint.config.text.vocab_size
    id_ = tokenizer.added_token_ids.get(token, tokenizer.size)
    if id_ >= num_rows:
        raise CheckpointError(
            f"The tokenizer of {checkpoint.folder.name} has no token {token!r} and the embedding table's {num_rows} "
            "rows have none to spare, expected one for transformers' format. Convert the checkpoint with transformers' "
            "convert_llava_onevision_weights_to_hf.py first."
        )
    settings, added = (
        read_json(folder / name, required=False) for name in ("tokenizer_config.json", "added_tokens.json")
    )
    settings.pop("chat_template", None)
    if token not in tokenizer.added_token_ids:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
        document["added_tokens"].append({"id": id_, "content": token, **flags})
        if "added_tokens_decoder" in settings:  # which transformers prefers to tokenizer.json
            settings["added_tokens_decoder"][str(id_)] = {"content": token, **flags}
        if added:
            write_json(folder / "added_tokens.json", {**added, token: id_})
    write_json(folder / "tokenizer.json", document)
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.json").unlink(missing_ok=True)
    return id_


# --- README -----------------------------------------------------------------------------------------------------------


def _annotated(readme: str, checkpoint: Checkpoint, options: QuantizeOptions, calibration: str) -> str:
    """Return the source's README with a note in front of its text, behind its front matter."""
    front = re.match(r"\ufeff?---\r?\n.*?\r?\n---\r?\n", readme, re.DOTALL)
    head = front[0] if front else f"---\nlicense: {checkpoint.provenance['license']}\n---\n"
    body = readme[front.end() :] if front else readme
    what = "Rotated" if options.method == "none" else "Quantised"
    note = (
        f"\n> **{what}** by varco-edge {__version__} from `{checkpoint.provenance['source']}`: {_how(options)}."
        f"{calibration} {_touched(options)} The licence of the original applies.\n\n"
    )
    return head + note + body.lstrip("\r\n")


def _how(options: QuantizeOptions) -> str:
    """Return what was done, for people."""
    scale = "a scale per row" if options.columns_per_scale is None else f"groups of {options.columns_per_scale}"
    kind = "symmetric" if options.symmetric else "with zero points"
    names = {
        "gptq": f"GPTQ, {options.num_bits} bits, {scale}, {kind}, compressed-tensors `{options.format}`",
        "rtn": f"rounding to the nearest, {options.num_bits} bits, {scale}, {kind}, compressed-tensors "
        f"`{options.format}`",
        "fp8": f"FP8 (E4M3) weights with {scale}, activations in FP8 with a scale per token as they come, "
        f"compressed-tensors `{options.format}`",
        "none": "nothing is rounded but to the type that it was stored in",
    }
    turned = f", after a rotation of its residual stream (seed {options.seed})" if options.is_rotated else ""
    return names[options.method] + turned


def _touched(options: QuantizeOptions) -> str:
    """Return which parts were changed, for people."""
    if options.method == "none":
        return "The vision tower is as it was."
    head = "" if options.lm_head == "plain" else f", and its output head in {options.lm_head}"
    if options.is_rotated:
        return f"The language model's linears are quantised{head}; the vision tower is as it was."
    others = "vision tower, projector, embedding"
    others += " and output head are" if options.lm_head == "plain" else " are"
    return f"The language model's linears are quantised{head}; {others} as they were."
