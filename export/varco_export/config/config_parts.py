"""What both families write alike into config.json: the language model, tokens, tiles, and the tower's own rules."""

from __future__ import annotations

import re
from dataclasses import dataclass

from varco_export.config.fields import REQUIRED, Fields, as_list
from varco_export.config.model_config import TextConfig, VisionConfig

# Far above any checkpoint of this kind, far below what would make a shape or a count dangerous.
MAX_WIDTH = 1 << 20
MAX_LAYERS = 1_000
_MAX_VOCAB = 1 << 24
_MAX_PINPOINTS = 1_000
_MAX_GRID_TILES = 1_000

# Defaults of transformers 5.
_ROPE_THETA = 10_000.0
_DEFAULT_PINPOINTS = [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)]


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """What one kind of language model has that another lacks. Source: transformers 5, `Qwen2Config`, `Qwen3Config`.

    `head_dim` is the size of a head where a file leaves it out, None for hidden_size over num_attention_heads.
    """

    name: str
    qkv_bias: bool
    qk_norm: bool
    head_dim: int | None


LANGUAGE_MODELS = {
    "qwen2": LanguageModel("Qwen2", qkv_bias=True, qk_norm=False, head_dim=None),
    "qwen3": LanguageModel("Qwen3", qkv_bias=False, qk_norm=True, head_dim=128),
}
"""By `model_type`."""


def language_model_of(fields: Fields) -> LanguageModel:
    """Return the kind of language model that `fields` name; a file without a name means Qwen2."""
    name = fields.values.get("model_type", "qwen2")
    kind = LANGUAGE_MODELS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise fields.refusal("model_type", name, "'qwen2' or 'qwen3' (only dense Qwen2 and Qwen3 are implemented)")
    return kind


def read_language_model(
    fields: Fields, tie_word_embeddings: bool, kind: LanguageModel = LANGUAGE_MODELS["qwen2"]
) -> TextConfig:
    """Return the language model that `fields` describe; another attention is refused by its key."""
    fields.expect("hidden_act", "silu", "only gated SiLU is implemented")
    if kind.qkv_bias:
        fields.expect("attention_bias", None, "Qwen2 has bias on q, k and v alone", also=(True,))
    else:
        fields.expect("attention_bias", False, f"only {kind.name} without bias is implemented", also=(None,))
    fields.expect("mlp_bias", None, f"{kind.name} has no bias in its MLP", also=(False,))
    heads = fields.whole("num_attention_heads", 32, MAX_WIDTH)
    key_value_heads = fields.whole(
        "num_key_value_heads", heads if "num_key_value_heads" in fields.values else 32, MAX_WIDTH
    )
    if heads % key_value_heads:
        raise fields.refusal("num_key_value_heads", key_value_heads, f"a divisor of num_attention_heads ({heads})")
    hidden_size = fields.whole("hidden_size", 4096, MAX_WIDTH)
    if fields.values.get("head_dim") is None and kind.head_dim is None and hidden_size % heads:
        raise fields.refusal("num_attention_heads", heads, f"a divisor of hidden_size ({hidden_size})")
    head_dim = fields.whole("head_dim", kind.head_dim or hidden_size // heads, MAX_WIDTH)
    if head_dim % 2:
        raise fields.refusal("head_dim", head_dim, "an even number, for rotary positions")
    num_hidden_layers = fields.whole("num_hidden_layers", 32, MAX_LAYERS)
    max_position_embeddings = fields.whole("max_position_embeddings", 32768, 1 << 30)
    _refuse_sliding_attention(fields, num_hidden_layers, max_position_embeddings)
    return TextConfig(
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        intermediate_size=fields.whole("intermediate_size", 22016, MAX_WIDTH),
        vocab_size=fields.whole("vocab_size", 151936, _MAX_VOCAB),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(fields),
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=tie_word_embeddings,
        qkv_bias=kind.qkv_bias,
        qk_norm=kind.qk_norm,
    )


def _refuse_sliding_attention(fields: Fields, num_layers: int, num_positions: int) -> None:
    """Raise `CheckpointError` if a layer does not see all positions. Source: transformers 5, `Qwen2Config`.

    A window that no layer uses, or that holds every position, changes nothing.
    """
    slides = fields.flag("use_sliding_window", False) and fields.values.get("sliding_window", 4096) is not None
    window = fields.whole("sliding_window", 4096, 1 << 30) if slides else 0
    first = fields.values.get("max_window_layers", 28)
    if slides and type(first) is not int:
        raise fields.refusal("max_window_layers", first, "a whole number")
    layer_types = fields.values.get("layer_types")
    if layer_types is None:
        layer_types = ["sliding_attention"] if slides and first < num_layers else ["full_attention"]
    if all(kind == "full_attention" for kind in as_list(layer_types)):
        return
    if any(kind not in ("full_attention", "sliding_attention") for kind in as_list(layer_types)):
        raise fields.refusal("layer_types", layer_types, "'full_attention' for every layer")
    if window < num_positions:
        got = window or None
        raise fields.refusal("sliding_window", got, f"a window of all {num_positions} positions, or in no layer")


def _rope_theta(fields: Fields) -> float:
    """Return `rope_theta`, read beside the widths or in transformers 5's `rope_parameters`; any scaling is refused."""
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


def refuse_other_vision(fields: Fields) -> None:
    """Raise `CheckpointError` for a tower that is not SigLIP."""
    reason = "only towers of one fixed size are implemented, SigLIP's and SigLIP 2's alike, and not NaFlex"
    fields.expect("model_type", "siglip_vision_model", reason)
    fields.expect("hidden_act", "gelu_pytorch_tanh", "only the tanh GELU is implemented in the vision tower")
    fields.expect("num_channels", 3, "pictures are RGB")


def check_vision(vision: VisionConfig) -> None:
    """Raise `CheckpointError` for sizes that no tower can have."""
    fields = Fields({}, "config.json: vision_config")
    if vision.hidden_size % vision.num_attention_heads:
        raise fields.refusal(
            "num_attention_heads", vision.num_attention_heads, f"a divisor of hidden_size ({vision.hidden_size})"
        )
    if vision.patch_size > vision.image_size:
        raise fields.refusal("patch_size", vision.patch_size, f"at most image_size ({vision.image_size})")


def read_image_token_id(config: Fields, vocab_size: int, default: int | None) -> int | None:
    """Return the id that stands for a picture, below `vocab_size`; None where neither file nor `default` names one."""
    key = "image_token_id" if config.values.get("image_token_id") is not None else "image_token_index"
    value = config.values.get(key, default)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < vocab_size:
        raise config.refusal(key, value, f"a token id below vocab_size ({vocab_size})")
    return value


def read_eos_token_ids(*configs: Fields) -> tuple[int, ...]:
    """Return the end tokens of the first object that names any, else none."""
    for config in configs:
        value = config.values.get("eos_token_id")
        if value is not None:
            ids = as_list(value)
            if not ids or any(type(token) is not int or not 0 <= token < _MAX_VOCAB for token in ids):
                raise config.refusal("eos_token_id", value, "a token id or a list of them")
            return tuple(ids)
    return ()


def read_max_grid_tiles(config: Fields, key: str, default: object) -> int | None:
    """Return the 9 of "anyres_max_9"; None for plain "anyres", where no grid is ever shrunk."""
    value = config.values.get(key, default)
    if value == "anyres":
        return None
    found = re.fullmatch(r"anyres_max_(\d{1,3})", value) if isinstance(value, str) else None
    if not found or int(found[1]) == 0:
        raise config.refusal(key, None if value is REQUIRED else value, "'anyres_max_N' or 'anyres'")
    return int(found[1])


def read_pinpoints(config: Fields, value: object, tile_px: int) -> tuple[tuple[int, int], ...]:
    """Return pairs of pixels in the file's order, multiples of the tile size.

    Without a `value` they are all grids of 1 to 6 tiles of 384 pixels, transformers' default.
    """
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
