"""Configuration of the family `hf`: transformers' LlavaOnevisionForConditionalGeneration.

Keys that a file leaves out take the defaults of the class that would read it (transformers 5: LlavaOnevisionConfig,
Qwen2Config, Qwen3Config, SiglipVisionConfig, LlavaOnevisionImageProcessorPil).
"""

from __future__ import annotations

from pathlib import Path

from varco_export.config.config_parts import (
    MAX_LAYERS,
    MAX_WIDTH,
    check_vision,
    language_model_of,
    read_eos_token_ids,
    read_image_token_id,
    read_language_model,
    read_max_grid_tiles,
    read_pinpoints,
    refuse_other_vision,
)
from varco_export.config.fields import Fields
from varco_export.config.model_config import ModelConfig, VisionConfig
from varco_export.reading.json_file import read_json
from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.errors import CheckpointError

# Defaults of transformers 5, class by class.
_SO400M = {  # LlavaOnevisionConfig.vision_config, where the file has none
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 14,
    "image_size": 384,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
}
_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]  # LlavaOnevisionImageProcessorPil, where the file has none
_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def read_hf(folder: Path, config: Fields) -> ModelConfig:
    """Return the configuration that config.json and the processor's file in `folder` state.

    Args:
        folder: The checkpoint.
        config: Its config.json.

    Raises:
        CheckpointError: A key is missing, malformed, or asks for what is not implemented.
    """
    text_fields = config.sub("text_config")
    kind = language_model_of(text_fields)
    tied = config.flag("tie_word_embeddings", False) or text_fields.flag("tie_word_embeddings", False)
    text = read_language_model(text_fields, tied, kind)

    vision_fields = config.sub("vision_config")
    if config.values.get("vision_config") is None:
        vision_fields = Fields(dict(_SO400M), "config.json: vision_config")
    refuse_other_vision(vision_fields)
    num_vision_layers = vision_fields.whole("num_hidden_layers", 12, MAX_LAYERS)
    vision = VisionConfig(
        hidden_size=vision_fields.whole("hidden_size", 768, MAX_WIDTH),
        num_hidden_layers=_layers_that_run(config, num_vision_layers),
        num_attention_heads=vision_fields.whole("num_attention_heads", 12, MAX_WIDTH),
        intermediate_size=vision_fields.whole("intermediate_size", 3072, MAX_WIDTH),
        image_size=vision_fields.whole("image_size", 224, MAX_WIDTH),
        patch_size=vision_fields.whole("patch_size", 16, MAX_WIDTH),
        layer_norm_eps=vision_fields.number("layer_norm_eps", 1e-6),
    )
    check_vision(vision)

    config.expect("vision_feature_select_strategy", "full", "no patch is dropped from a SigLIP tower")
    config.expect("multimodal_projector_bias", True, "only projectors with bias are implemented")
    projector_hidden_act = config.expect("projector_hidden_act", "gelu", "only the exact (erf) GELU is implemented")
    return ModelConfig(
        family="hf",
        vision=vision,
        text=text,
        projector_hidden_act=projector_hidden_act,
        image=_read_hf_image(folder, config, vision),
        image_token_id=read_image_token_id(config, text.vocab_size, 151646),
        eos_token_id=read_eos_token_ids(config, text_fields),
        raw=config.values,
        num_dropped_vision_layers=num_vision_layers - vision.num_hidden_layers,
    )


def _layers_that_run(config: Fields, num_hidden_layers: int) -> int:
    """Return how many layers of the vision tower the features take, by `vision_feature_layer`.

    That is an index into [embeddings, layer 1, ..., layer N], or a list of one.
    """
    value = config.values.get("vision_feature_layer", -1)
    layer = value[0] if isinstance(value, list) and len(value) == 1 else value
    if type(layer) is not int or not 1 <= abs(layer) <= num_hidden_layers:
        expected = f"one layer, 1 to {num_hidden_layers} or -1 to -{num_hidden_layers}"
        raise config.refusal("vision_feature_layer", value, expected)
    return layer % (num_hidden_layers + 1)


def _read_hf_image(folder: Path, config: Fields, vision: VisionConfig) -> ImageSettings:
    fields = _processor_fields(folder)
    for key in ("do_resize", "do_rescale", "do_normalize"):
        fields.expect(key, True, "the model was trained with this step")
    # Without it transformers takes RGB pictures alone, and those alike. (`do_pad` evens out the tiles of several
    # pictures and changes none of them.)
    fields.expect("do_convert_rgb", True, "the model was trained with RGB pictures", also=(None,))
    fields.expect("do_center_crop", None, "tiles are never cropped", also=(False,))
    fields.expect("resample", 3, "only bicubic resizing is implemented")
    size = fields.values.get("size", {"height": 384, "width": 384})
    if size != {"height": vision.image_size, "width": vision.image_size}:
        raise fields.refusal("size", size, f"height and width {vision.image_size}, the vision tower's image_size")
    pinpoints = read_pinpoints(config, config.values.get("image_grid_pinpoints"), vision.image_size)
    tiled = read_pinpoints(fields, fields.values.get("image_grid_pinpoints"), vision.image_size)
    if pinpoints != tiled:
        raise CheckpointError(
            f"image_grid_pinpoints differ: {len(pinpoints)} in config.json, {len(tiled)} in {fields.where}, expected "
            "the same list. Copy both files from the checkpoint's original repository."
        )
    return ImageSettings(
        tile_px=vision.image_size,
        patch_px=vision.patch_size,
        grid_pinpoints=pinpoints,
        max_grid_tiles=read_max_grid_tiles(config, "vision_aspect_ratio", "anyres_max_9"),
        mean=fields.triple("image_mean", _CLIP_MEAN),
        std=fields.triple("image_std", _CLIP_STD, positive=True),
        rescale_factor=fields.number("rescale_factor", 1 / 255),
    )


def _processor_fields(folder: Path) -> Fields:
    """Return how pictures are prepared, from the file that transformers would take.

    transformers 5 writes `image_processor` into processor_config.json, and reads it there even beside an older
    preprocessor_config.json (`image_processing_base.py`, `get_image_processor_dict`).
    """
    nested = Fields(read_json(folder / "processor_config.json", required=False), "processor_config.json")
    if nested.values.get("image_processor") is not None:
        return nested.sub("image_processor")
    return Fields(read_json(folder / "preprocessor_config.json"), "preprocessor_config.json")
