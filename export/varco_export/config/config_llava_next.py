"""Configuration of the family `llava_next`: LLaVA-NeXT's LlavaQwenForCausalLM.

Its config says next to nothing about its vision tower, so widths and depth come from the weights, and what shapes
cannot tell from `VISION_TOWERS`, or from a `vision_config` in the file, which wins.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from varco_export.config.config_parts import (
    MAX_LAYERS,
    MAX_WIDTH,
    check_vision,
    read_eos_token_ids,
    read_image_token_id,
    read_language_model,
    read_max_grid_tiles,
    read_pinpoints,
    refuse_other_vision,
)
from varco_export.config.fields import REQUIRED, Fields
from varco_export.config.model_config import ModelConfig, Shapes, TextConfig, VisionConfig
from varco_export.reading.quoting import show
from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class VisionTower:
    """Facts of a vision tower that the shapes of its weights cannot tell.

    `num_hidden_layers` counts the layers of the tower as published, of which LLaVA-NeXT deletes the last one.
    """

    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    layer_norm_eps: float


# Keyed by the last part of `mm_vision_tower`, a repo id or a folder. Source: LLaVA-NeXT, siglip_encoder.py.
VISION_TOWERS = {"siglip-so400m-patch14-384": VisionTower(27, 16, 384, 1e-6)}


def read_llava_next(config: Fields, shapes: Shapes) -> ModelConfig:
    """Return the configuration that config.json states and the weights' shapes tell.

    Args:
        config: The checkpoint's config.json.
        shapes: Shapes of all tensors by canonical name.

    Raises:
        CheckpointError: A key is missing, malformed, or asks for what is not implemented.
    """
    config.expect("mm_projector_type", "mlp2x_gelu", "only the two-layer projector is implemented")
    config.expect(
        "mm_patch_merge_type",
        "spatial_unpad",
        "only un-padding with one newline per row is implemented; LLaVA-NeXT-Interleave has none",
        absent="flat",
    )
    config.expect("mm_vision_select_feature", "patch", "no patch is dropped from a SigLIP tower")
    config.expect("mm_resampler_type", None, "no resampler is implemented")
    config.expect("mm_use_im_start_end", False, "no start and end tokens around a picture are implemented")
    config.expect(
        "mm_vision_select_layer", -2, "the output of the last layer that LLaVA-NeXT keeps is used", also=(-1,)
    )
    config.expect("use_pos_skipping", False, "positions are never skipped")
    vision = _vision_from_weights(config, shapes)
    text, notes = _text_from_weights(config, shapes)
    return ModelConfig(
        family="llava_next",
        vision=vision,
        text=text,
        projector_hidden_act="gelu",
        image=ImageSettings(
            tile_px=vision.image_size,
            patch_px=vision.patch_size,
            grid_pinpoints=_llava_next_pinpoints(config, vision.image_size),
            max_grid_tiles=read_max_grid_tiles(config, "image_aspect_ratio", REQUIRED),
            mean=(0.5, 0.5, 0.5),  # SigLipImageProcessor's own figures; LLaVA-NeXT reads no preprocessor_config.json
            std=(0.5, 0.5, 0.5),
            rescale_factor=1 / 255,
        ),
        image_token_id=read_image_token_id(config, text.vocab_size, None),
        eos_token_id=read_eos_token_ids(config),
        raw=config.values,
        num_dropped_vision_layers=1,  # the one that LLaVA-NeXT deletes after loading
        notes=notes,
    )


def _vision_from_weights(config: Fields, shapes: Shapes) -> VisionConfig:
    given = config.sub("vision_config")
    tower = VISION_TOWERS.get(str(config.values.get("mm_vision_tower")).rstrip("/").rpartition("/")[2])
    if tower is None and not given.values:
        known, name = ", ".join(repr(name) for name in VISION_TOWERS), show(config.values.get("mm_vision_tower"))
        raise CheckpointError(
            f"config.json: mm_vision_tower is {name}, expected {known}. For another SigLIP tower "
            "add a vision_config with num_attention_heads and image_size to config.json."
        )
    refuse_other_vision(given)
    hidden_size, _, patch_size, _ = _shape(shapes, "vision_tower.embeddings.patch_embedding.weight", 4)
    intermediate_size, _ = _shape(shapes, "vision_tower.encoder.layers.0.mlp.fc1.weight", 2)
    depth = _depth(shapes, "vision_tower.encoder.layers.")
    if tower is not None and depth == tower.num_hidden_layers:
        depth -= 1  # the layer that LLaVA-NeXT deletes after loading
    vision = VisionConfig(
        hidden_size=given.whole("hidden_size", hidden_size, MAX_WIDTH),
        num_hidden_layers=given.whole("num_hidden_layers", depth, MAX_LAYERS),
        num_attention_heads=given.whole(
            "num_attention_heads", tower.num_attention_heads if tower else REQUIRED, MAX_WIDTH
        ),
        intermediate_size=given.whole("intermediate_size", intermediate_size, MAX_WIDTH),
        image_size=given.whole("image_size", tower.image_size if tower else REQUIRED, MAX_WIDTH),
        patch_size=given.whole("patch_size", patch_size, MAX_WIDTH),
        layer_norm_eps=given.number("layer_norm_eps", tower.layer_norm_eps if tower else 1e-6),
    )
    check_vision(vision)
    return vision


def _text_from_weights(config: Fields, shapes: Shapes) -> tuple[TextConfig, tuple[str, ...]]:
    """Return the language model's configuration, and a note where the embedding has other rows than config.json says.

    LLaVA-NeXT resizes the embedding for its own tokens, so the weights win.
    """
    rows, _ = _shape(shapes, "language_model.embed_tokens.weight", 2)
    stated = config.values.get("vocab_size")
    notes: tuple[str, ...] = ()
    if stated != rows:
        notes = (
            f"config.json says vocab_size {show(stated)}, the weights have {rows} rows: the weights were followed.",
        )
    fields = Fields({**config.values, "vocab_size": rows}, config.where)
    return read_language_model(fields, config.flag("tie_word_embeddings", False)), notes


def _llava_next_pinpoints(config: Fields, tile_px: int) -> tuple[tuple[int, int], ...]:
    """Return (height, width) pairs. LLaVA-NeXT writes (width, height), as a list or as "(1x1),...,(6x6)" in tiles.

    Source of the string form: LLaVA-NeXT, mm_utils.py `process_anyres_image` (all pairs from the first to the last).
    """
    value = config.values.get("image_grid_pinpoints")
    if isinstance(value, str):
        pairs = [(int(w), int(h)) for w, h in re.findall(r"\((\d{1,4})x(\d{1,4})\)", value)]
        if pairs:
            (w0, h0), (w1, h1) = pairs[0], pairs[-1]
            if not (0 < w0 <= w1 <= 64 and 0 < h0 <= h1 <= 64):
                raise config.refusal("image_grid_pinpoints", value, "a range of tiles such as '(1x1),...,(6x6)'")
            value = [[w * tile_px, h * tile_px] for w in range(w0, w1 + 1) for h in range(h0, h1 + 1)]
        else:
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                raise config.refusal("image_grid_pinpoints", value, "a list of pairs or '(1x1),...,(6x6)'") from None
    if value is None:
        raise config.refusal("image_grid_pinpoints", value, "a list of pairs or '(1x1),...,(6x6)'")
    return tuple((h, w) for w, h in read_pinpoints(config, value, tile_px))


def _shape(shapes: Shapes, name: str, num_dims: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise CheckpointError(
            f"{name} is missing from the weights, expected in every checkpoint. Copy the shards again."
        )
    if len(shape) != num_dims or 0 in shape:
        raise CheckpointError(
            f"{name} has shape {list(shape)}, expected {num_dims} dimensions, none of them 0. Copy the shards from the "
            "original repository."
        )
    return shape


def _depth(shapes: Shapes, prefix: str) -> int:
    layers = {name[len(prefix) :].split(".", 1)[0] for name in shapes if name.startswith(prefix)}
    return (
        max((int(layer) for layer in layers if layer.isascii() and layer.isdigit() and len(layer) < 5), default=-1) + 1
    )
