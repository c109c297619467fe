"""config.json and preprocessor_config.json of both families -> `ModelConfig`, or a refusal by name.

Two families carry the same network: `hf`, transformers' LlavaOnevisionForConditionalGeneration, and `llava_next`,
LLaVA-NeXT's LlavaQwenForCausalLM. Keys that a file leaves out take the defaults of the class that would read it
(transformers 5: LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig, LlavaOnevisionImageProcessorPil).
LLaVA-NeXT's config says next to nothing about its vision tower, so widths and depth come from the weights, and what
shapes cannot tell from `VISION_TOWERS`, or from a `vision_config` in the file, which wins.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from varco_runtime.errors import CheckpointError
from varco_runtime.settings import ImageSettings

Family = Literal["hf", "llava_next"]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The SigLIP tower. `num_hidden_layers` counts the layers that run: the features are what the last of them gives,
    before post_layernorm."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    layer_norm_eps: float


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The Qwen2 language model: q, k and v with bias, o and MLP without, SiLU, plain rotary positions."""

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


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything the exporter needs to know about a checkpoint apart from its weights.

    `image_token_id` is None where the checkpoint names none (LLaVA-NeXT splits `<image>` out of the text).
    `num_dropped_vision_layers`: how many more layers than those that run the checkpoint may hold.
    `eos_token_id` holds the ids of config.json, usually one; generation_config.json may name others.
    `raw` is config.json as read; `notes` says, a sentence each, where weights and files disagreed and which won.
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


@dataclass(frozen=True, slots=True)
class VisionTower:
    """What the shapes of a vision tower's weights cannot tell. `num_hidden_layers`: of the tower as published, of
    which LLaVA-NeXT deletes the last one."""

    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    layer_norm_eps: float


# Keyed by the last part of `mm_vision_tower`, a repo id or a folder. Source: LLaVA-NeXT, siglip_encoder.py.
VISION_TOWERS = {"siglip-so400m-patch14-384": VisionTower(27, 16, 384, 1e-6)}

# Defaults of transformers 5, class by class.
_SO400M = {  # LlavaOnevisionConfig.vision_config, where the file has none
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 14,
    "image_size": 384,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
}
_ROPE_THETA = 10_000.0
_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]  # LlavaOnevisionImageProcessorPil, where the file has none
_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
_DEFAULT_PINPOINTS = [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)]

# Far above any checkpoint of this kind, far below what would make a shape or a count dangerous.
_MAX_WIDTH = 1 << 20
_MAX_LAYERS = 1_000
_MAX_VOCAB = 1 << 24
_MAX_PINPOINTS = 1_000
_MAX_GRID_TILES = 1_000
_REQUIRED = object()


def read_config(folder: Path, shapes: Shapes) -> ModelConfig:
    """The configuration of the checkpoint in `folder`, whose tensors have `shapes` (by canonical name)."""
    config = _Fields(read_json(folder / "config.json"), "config.json")
    match config.values.get("model_type"):
        case "llava_onevision":
            return _read_hf(folder, config)
        case "llava_qwen":
            return _read_llava_next(config, shapes)
        case "llava" | "qwen2" if "LlavaQwenForCausalLM" in _as_list(config.values.get("architectures")):
            return _read_llava_next(config, shapes)
        case other:
            only_text = " For a language model quantised apart, add --vision-from ORIGINAL." if other == "qwen2" else ""
            raise CheckpointError(
                f"config.json: model_type is {_show(other)}, expected 'llava_onevision' (transformers) or 'llava_qwen' "
                "(LLaVA-NeXT). Only LLaVA-OneVision checkpoints with a Qwen2 language model can be "
                f"exported.{only_text}"
            )


def read_text_config(folder: Path) -> TextConfig:
    """The language model that config.json describes, on its own or as part of a whole."""
    config = _Fields(read_json(folder / "config.json"), "config.json")
    fields = config.sub("text_config") if "text_config" in config.values else config
    if fields.values.get("model_type") not in ("qwen2", "llava_qwen"):
        fields.expect("model_type", "qwen2", "only Qwen2 language models are implemented")
    return _read_text(fields, config.flag("tie_word_embeddings", False) or fields.flag("tie_word_embeddings", False))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.name} is missing from {path.parent}. Copy it from the checkpoint's original repository."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({_line(error)}). Copy it again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {_show(value)}, expected a JSON object. Copy it again.")
    return value


# --- transformers -----------------------------------------------------------------------------------------------------


def _read_hf(folder: Path, config: _Fields) -> ModelConfig:
    text_fields = config.sub("text_config")
    text_fields.expect("model_type", "qwen2", "only Qwen2 language models are implemented")
    tied = config.flag("tie_word_embeddings", False) or text_fields.flag("tie_word_embeddings", False)
    text = _read_text(text_fields, tied)

    vision_fields = config.sub("vision_config")
    if config.values.get("vision_config") is None:
        vision_fields = _Fields(dict(_SO400M), "config.json: vision_config")
    _refuse_other_vision(vision_fields)
    num_vision_layers = vision_fields.whole("num_hidden_layers", 12, _MAX_LAYERS)
    vision = VisionConfig(
        hidden_size=vision_fields.whole("hidden_size", 768, _MAX_WIDTH),
        num_hidden_layers=_layers_that_run(config, num_vision_layers),
        num_attention_heads=vision_fields.whole("num_attention_heads", 12, _MAX_WIDTH),
        intermediate_size=vision_fields.whole("intermediate_size", 3072, _MAX_WIDTH),
        image_size=vision_fields.whole("image_size", 224, _MAX_WIDTH),
        patch_size=vision_fields.whole("patch_size", 16, _MAX_WIDTH),
        layer_norm_eps=vision_fields.number("layer_norm_eps", 1e-6),
    )
    _check_vision(vision)

    config.expect("vision_feature_select_strategy", "full", "no patch is dropped from a SigLIP tower")
    config.expect("multimodal_projector_bias", True, "only projectors with bias are implemented")
    projector_hidden_act = config.expect("projector_hidden_act", "gelu", "only the exact (erf) GELU is implemented")
    return ModelConfig(
        family="hf",
        vision=vision,
        text=text,
        projector_hidden_act=projector_hidden_act,
        image=_read_hf_image(folder, config, vision),
        image_token_id=_image_token_id(config, text.vocab_size, 151646),
        eos_token_id=_eos_token_id(config, text_fields),
        raw=config.values,
        num_dropped_vision_layers=num_vision_layers - vision.num_hidden_layers,
    )


def _layers_that_run(config: _Fields, num_hidden_layers: int) -> int:
    """`vision_feature_layer` indexes [embeddings, layer 1, ..., layer N]; -1 is the last layer's output."""
    layer = config.values.get("vision_feature_layer", -1)
    if type(layer) is not int or not 1 <= abs(layer) <= num_hidden_layers:
        expected = f"one layer, 1 to {num_hidden_layers} or -1 to -{num_hidden_layers}"
        raise config.refusal("vision_feature_layer", layer, expected)
    return layer % (num_hidden_layers + 1)


def _read_hf_image(folder: Path, config: _Fields, vision: VisionConfig) -> ImageSettings:
    fields = _processor_fields(folder)
    for key in ("do_resize", "do_rescale", "do_normalize", "do_pad", "do_convert_rgb"):
        fields.expect(key, True, "the model was trained with this step")
    fields.expect("do_center_crop", None, "tiles are never cropped", also=(False,))
    fields.expect("resample", 3, "only bicubic resizing is implemented")
    size = fields.values.get("size", {"height": 384, "width": 384})
    if size != {"height": vision.image_size, "width": vision.image_size}:
        raise fields.refusal("size", size, f"height and width {vision.image_size}, the vision tower's image_size")
    pinpoints = _pinpoints(config, config.values.get("image_grid_pinpoints"), vision.image_size)
    tiled = _pinpoints(fields, fields.values.get("image_grid_pinpoints"), vision.image_size)
    if pinpoints != tiled:
        raise CheckpointError(
            f"image_grid_pinpoints differ: {len(pinpoints)} in config.json, {len(tiled)} in {fields.where}, expected "
            "the same list. Copy both files from the checkpoint's original repository."
        )
    return ImageSettings(
        tile_px=vision.image_size,
        patch_px=vision.patch_size,
        grid_pinpoints=pinpoints,
        max_grid_tiles=_max_grid_tiles(config, "vision_aspect_ratio", "anyres_max_9"),
        mean=fields.triple("image_mean", _CLIP_MEAN),
        std=fields.triple("image_std", _CLIP_STD, positive=True),
        rescale_factor=fields.number("rescale_factor", 1 / 255),
    )


def _processor_fields(folder: Path) -> _Fields:
    """preprocessor_config.json, or its contents inside processor_config.json, where transformers 5 writes them."""
    nested = folder / "processor_config.json"
    if not (folder / "preprocessor_config.json").exists() and nested.exists():
        inner = _Fields(read_json(nested), nested.name).sub("image_processor")
        if inner.values:
            return inner
    return _Fields(read_json(folder / "preprocessor_config.json"), "preprocessor_config.json")


# --- LLaVA-NeXT -------------------------------------------------------------------------------------------------------


def _read_llava_next(config: _Fields, shapes: Shapes) -> ModelConfig:
    config.expect("mm_projector_type", "mlp2x_gelu", "only the two-layer projector is implemented")
    config.expect(
        "mm_patch_merge_type", "spatial_unpad", "only un-padding with one newline per row is implemented", absent="flat"
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
            max_grid_tiles=_max_grid_tiles(config, "image_aspect_ratio", _REQUIRED),
            mean=(0.5, 0.5, 0.5),  # SigLipImageProcessor's own figures; LLaVA-NeXT reads no preprocessor_config.json
            std=(0.5, 0.5, 0.5),
            rescale_factor=1 / 255,
        ),
        image_token_id=_image_token_id(config, text.vocab_size, None),
        eos_token_id=_eos_token_id(config),
        raw=config.values,
        num_dropped_vision_layers=1,  # the one that LLaVA-NeXT deletes after loading
        notes=notes,
    )


def _vision_from_weights(config: _Fields, shapes: Shapes) -> VisionConfig:
    given = config.sub("vision_config")
    tower = VISION_TOWERS.get(str(config.values.get("mm_vision_tower")).rstrip("/").rpartition("/")[2])
    if tower is None and not given.values:
        known, name = ", ".join(repr(name) for name in VISION_TOWERS), _show(config.values.get("mm_vision_tower"))
        raise CheckpointError(
            f"config.json: mm_vision_tower is {name}, expected {known}. For another SigLIP tower "
            "add a vision_config with num_attention_heads and image_size to config.json."
        )
    _refuse_other_vision(given)
    hidden_size, _, patch_size, _ = _shape(shapes, "vision_tower.embeddings.patch_embedding.weight", 4)
    intermediate_size, _ = _shape(shapes, "vision_tower.encoder.layers.0.mlp.fc1.weight", 2)
    depth = _depth(shapes, "vision_tower.encoder.layers.")
    if tower is not None and depth == tower.num_hidden_layers:
        depth -= 1  # the layer that LLaVA-NeXT deletes after loading
    vision = VisionConfig(
        hidden_size=given.whole("hidden_size", hidden_size, _MAX_WIDTH),
        num_hidden_layers=given.whole("num_hidden_layers", depth, _MAX_LAYERS),
        num_attention_heads=given.whole(
            "num_attention_heads", tower.num_attention_heads if tower else _REQUIRED, _MAX_WIDTH
        ),
        intermediate_size=given.whole("intermediate_size", intermediate_size, _MAX_WIDTH),
        image_size=given.whole("image_size", tower.image_size if tower else _REQUIRED, _MAX_WIDTH),
        patch_size=given.whole("patch_size", patch_size, _MAX_WIDTH),
        layer_norm_eps=given.number("layer_norm_eps", tower.layer_norm_eps if tower else 1e-6),
    )
    _check_vision(vision)
    return vision


def _text_from_weights(config: _Fields, shapes: Shapes) -> tuple[TextConfig, tuple[str, ...]]:
    """LLaVA-NeXT resizes the embedding for its own tokens: where config.json disagrees, the weights win."""
    rows, _ = _shape(shapes, "language_model.embed_tokens.weight", 2)
    stated = config.values.get("vocab_size")
    notes: tuple[str, ...] = ()
    if stated != rows:
        notes = (
            f"config.json says vocab_size {_show(stated)}, the weights have {rows} rows: the weights were followed.",
        )
    fields = _Fields({**config.values, "vocab_size": rows}, config.where)
    return _read_text(fields, config.flag("tie_word_embeddings", False)), notes


def _llava_next_pinpoints(config: _Fields, tile_px: int) -> tuple[tuple[int, int], ...]:
    """(height, width) pairs; LLaVA-NeXT writes (width, height), as a list or as "(1x1),...,(6x6)" in tiles.

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
    return tuple((h, w) for w, h in _pinpoints(config, value, tile_px))


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


# --- both -------------------------------------------------------------------------------------------------------------


def _read_text(fields: _Fields, tie_word_embeddings: bool) -> TextConfig:
    fields.expect("hidden_act", "silu", "only gated SiLU is implemented")
    fields.expect("use_sliding_window", False, "only full attention is implemented")
    fields.expect("attention_bias", None, "Qwen2 has bias on q, k and v alone", also=(True,))
    fields.expect("mlp_bias", None, "Qwen2 has no bias in its MLP", also=(False,))
    layer_types = fields.values.get("layer_types")
    if layer_types is not None and any(kind != "full_attention" for kind in _as_list(layer_types)):
        raise fields.refusal("layer_types", layer_types, "'full_attention' for every layer")
    heads = fields.whole("num_attention_heads", 32, _MAX_WIDTH)
    key_value_heads = fields.whole(
        "num_key_value_heads", heads if "num_key_value_heads" in fields.values else 32, _MAX_WIDTH
    )
    if heads % key_value_heads:
        raise fields.refusal("num_key_value_heads", key_value_heads, f"a divisor of num_attention_heads ({heads})")
    hidden_size = fields.whole("hidden_size", 4096, _MAX_WIDTH)
    if fields.values.get("head_dim") is None and hidden_size % heads:
        raise fields.refusal("num_attention_heads", heads, f"a divisor of hidden_size ({hidden_size})")
    head_dim = fields.whole("head_dim", hidden_size // heads, _MAX_WIDTH)
    if head_dim % 2:
        raise fields.refusal("head_dim", head_dim, "an even number, for rotary positions")
    return TextConfig(
        hidden_size=hidden_size,
        num_hidden_layers=fields.whole("num_hidden_layers", 32, _MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        intermediate_size=fields.whole("intermediate_size", 22016, _MAX_WIDTH),
        vocab_size=fields.whole("vocab_size", 151936, _MAX_VOCAB),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(fields),
        max_position_embeddings=fields.whole("max_position_embeddings", 32768, 1 << 30),
        tie_word_embeddings=tie_word_embeddings,
    )


def _rope_theta(fields: _Fields) -> float:
    """`rope_theta` beside the widths, or in transformers 5's `rope_parameters`; any scaling is refused."""
    theta = fields.number("rope_theta", _ROPE_THETA)
    for key in ("rope_scaling", "rope_parameters"):
        rope = fields.sub(key)
        for spelling in ("rope_type", "type"):
            rope.expect(spelling, "default", "scaled rotary positions are not implemented")
        rope.expect("partial_rotary_factor", 1.0, "only full rotary positions are implemented")
        unknown = rope.values.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
        if unknown:
            raise rope.refusal(sorted(unknown)[0], rope.values[sorted(unknown)[0]], "plain rotary positions")
        theta = rope.number("rope_theta", theta)
    return theta


def _refuse_other_vision(fields: _Fields) -> None:
    fields.expect("model_type", "siglip_vision_model", "only SigLIP towers are implemented")
    fields.expect("hidden_act", "gelu_pytorch_tanh", "only the tanh GELU is implemented in the vision tower")
    fields.expect("num_channels", 3, "pictures are RGB")


def _check_vision(vision: VisionConfig) -> None:
    fields = _Fields({}, "config.json: vision_config")
    if vision.hidden_size % vision.num_attention_heads:
        raise fields.refusal(
            "num_attention_heads", vision.num_attention_heads, f"a divisor of hidden_size ({vision.hidden_size})"
        )
    if vision.patch_size > vision.image_size:
        raise fields.refusal("patch_size", vision.patch_size, f"at most image_size ({vision.image_size})")


def _image_token_id(config: _Fields, vocab_size: int, default: int | None) -> int | None:
    key = "image_token_id" if config.values.get("image_token_id") is not None else "image_token_index"
    value = config.values.get(key, default)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < vocab_size:
        raise config.refusal(key, value, f"a token id below vocab_size ({vocab_size})")
    return value


def _eos_token_id(*configs: _Fields) -> tuple[int, ...]:
    for config in configs:
        value = config.values.get("eos_token_id")
        if value is not None:
            ids = _as_list(value)
            if not ids or any(type(token) is not int or not 0 <= token < _MAX_VOCAB for token in ids):
                raise config.refusal("eos_token_id", value, "a token id or a list of them")
            return tuple(ids)
    return ()


def _max_grid_tiles(config: _Fields, key: str, default: object) -> int | None:
    """The 9 of "anyres_max_9"; None for plain "anyres", where no grid is ever shrunk."""
    value = config.values.get(key, default)
    if value == "anyres":
        return None
    found = re.fullmatch(r"anyres_max_(\d{1,3})", value) if isinstance(value, str) else None
    if not found or int(found[1]) == 0:
        raise config.refusal(key, None if value is _REQUIRED else value, "'anyres_max_N' or 'anyres'")
    return int(found[1])


def _pinpoints(config: _Fields, value: object, tile_px: int) -> tuple[tuple[int, int], ...]:
    pairs = _DEFAULT_PINPOINTS if value is None else value
    expected = (
        f"1 to {_MAX_PINPOINTS} pairs of multiples of the tile size {tile_px}, at most {_MAX_GRID_TILES} tiles each"
    )
    if not isinstance(pairs, list | tuple) or not 0 < len(pairs) <= _MAX_PINPOINTS:
        raise config.refusal("image_grid_pinpoints", value, expected)
    for pair in pairs:
        good = isinstance(pair, list | tuple) and len(pair) == 2 and all(type(side) is int for side in pair)
        if not good or any(side <= 0 or side % tile_px for side in pair):
            raise config.refusal("image_grid_pinpoints", pair, expected)
        if pair[0] * pair[1] > _MAX_GRID_TILES * tile_px**2:
            raise config.refusal("image_grid_pinpoints", pair, expected)
    return tuple((first, second) for first, second in pairs)


@dataclass(frozen=True, slots=True)
class _Fields:
    """A JSON object and where it stands, read key by key with checks that name the key."""

    values: dict[str, Any]
    where: str

    def sub(self, key: str) -> _Fields:
        """The object under `key`; empty where the file has none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.refusal(key, value, "an object")
        return _Fields(value or {}, f"{self.where}: {key}")

    def whole(self, key: str, default: object, maximum: int) -> int:
        value = self._get(key, default)
        if type(value) is not int or not 1 <= value <= maximum:
            raise self.refusal(key, value, f"a whole number from 1 to {maximum}")
        return value

    def number(self, key: str, default: object) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float) or not 0 < value < math.inf or abs(value) > 1e30:
            raise self.refusal(key, value, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if type(value) is not bool:
            raise self.refusal(key, value, "true or false")
        return value

    def triple(self, key: str, default: list[float], positive: bool = False) -> tuple[float, float, float]:
        value = self._get(key, default)
        numbers = _as_list(value)
        if len(numbers) != 3 or not all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
            raise self.refusal(key, value, "three numbers")
        if positive and min(numbers) <= 0:
            raise self.refusal(key, value, "three positive numbers")
        return float(numbers[0]), float(numbers[1]), float(numbers[2])

    def expect(self, key: str, only: Any, reason: str, also: tuple[Any, ...] = (), absent: Any = _REQUIRED) -> Any:
        """The value under `key`; any but `only` is refused with the reason. `absent` stands for a key left out."""
        value = self.values.get(key, only if absent is _REQUIRED else absent)
        if not any(type(value) is type(good) and value == good for good in (only, *also)):
            raise self.refusal(key, value, f"{_show(only)} ({reason})")
        return value

    def refusal(self, key: str, got: object, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{self.where}: {key} is {_show(got)}, expected {expected}. Compare the file with its original repository; "
            "a model that differs here cannot be exported."
        )

    def _get(self, key: str, default: object) -> Any:
        value = self.values.get(key)
        if value is None and default is _REQUIRED:
            raise self.refusal(key, None, "a value")
        return default if value is None else value


def _as_list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _show(value: object) -> str:
    """A value as JSON spells it, cut to one short line."""
    try:
        text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(type(value))
    text = "missing" if value is None else text
    return text if len(text) <= 80 else text[:77] + "..."


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
