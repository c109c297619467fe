"""config.json and preprocessor_config.json of both families -> `ModelConfig`, or a refusal by name."""

from __future__ import annotations

import re
from pathlib import Path

from varco_export.config.config_hf import read_hf
from varco_export.config.config_llava_next import read_llava_next
from varco_export.config.config_parts import LANGUAGE_MODELS, language_model_of, read_language_model
from varco_export.config.fields import Fields, as_list
from varco_export.config.model_config import ModelConfig, Shapes, TextConfig
from varco_export.reading.json_file import read_json
from varco_export.reading.quoting import show
from varco_runtime.errors import CheckpointError

_NAMESAKES = re.compile(r"llava_?one_?vision_?(1[._]?5|2)", re.IGNORECASE)


def read_config(folder: Path, shapes: Shapes) -> ModelConfig:
    """Return the configuration of a checkpoint of either family.

    Args:
        folder: The checkpoint.
        shapes: Shapes of its tensors by canonical name.

    Raises:
        CheckpointError: The model is another one, or a key is missing, malformed, or asks for what is not implemented.
    """
    config = Fields(read_json(folder / "config.json"), "config.json")
    _refuse_namesakes(config)
    match config.values.get("model_type"):
        case "llava_onevision":
            return read_hf(folder, config)
        case "llava_qwen":
            return read_llava_next(config, shapes)
        case "llava" | "qwen2" if "LlavaQwenForCausalLM" in as_list(config.values.get("architectures")):
            return read_llava_next(config, shapes)
        case other:
            alone = other in LANGUAGE_MODELS if isinstance(other, str) else False
            only_text = " For a language model quantised apart, add --vision-from ORIGINAL." if alone else ""
            raise CheckpointError(
                f"config.json: model_type is {show(other)}, expected 'llava_onevision' (transformers) or 'llava_qwen' "
                "(LLaVA-NeXT). Only LLaVA-OneVision checkpoints with a Qwen2 or Qwen3 language model "
                f"can be exported.{only_text}"
            )


def _refuse_namesakes(config: Fields) -> None:
    """Refuse LLaVA-OneVision-1.5 and 2, which share a name with LLaVA-OneVision and hardly anything else."""
    for key in ("model_type", "architectures"):
        for name in as_list(config.values.get(key)):
            if isinstance(name, str) and _NAMESAKES.match(name):
                raise CheckpointError(
                    f"config.json: {key} is {show(name)}, another network with the same name (its tower sees whole "
                    "pictures, not tiles), expected LLaVA-OneVision of 2024 or VARCO-VISION. It cannot be exported."
                )


def read_text_config(folder: Path) -> TextConfig:
    """Return the language model that config.json describes, on its own or as part of a whole."""
    config = Fields(read_json(folder / "config.json"), "config.json")
    fields = config.sub("text_config") if "text_config" in config.values else config
    tied = config.flag("tie_word_embeddings", False) or fields.flag("tie_word_embeddings", False)
    if fields.values.get("model_type") == "llava_qwen":
        return read_language_model(fields, tied)
    return read_language_model(fields, tied, language_model_of(fields))
