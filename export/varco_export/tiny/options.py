"""Options of a tiny checkpoint and their checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from varco_export.config.config_parts import LANGUAGE_MODELS, LanguageModel
from varco_export.config.model_config import ModelConfig, TextConfig, VisionConfig
from varco_export.reading.tensor import Dtype
from varco_export.tiny.tokenizer import token_ids
from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.errors import UsageError

Format = Literal["hf", "llava-next"]
Names = Literal["old", "new"]
Text = Literal["qwen2", "qwen3"]


@dataclass(frozen=True, slots=True)
class Scales:
    """How large random weights are. A linear's std is its gain over the square root of its inputs.

    `query_key` sharpens attention: in Qwen3, whose heads are normalized, as the mean of those norms' weights, and
    `head_norm` is their std. `attention` and `mlp` are what a layer adds to the residual; `logits` is the std of the
    logits; `special` scales the head's rows of special tokens and past the tokenizer, so that text rarely ends.
    """

    embedding: float = 1.0
    query_key: float = 1.6
    attention: float = 2.0
    mlp: float = 2.0
    bias: float = 0.3
    norm: float = 0.2
    head_norm: float = 0.3
    vision: float = 1.0
    projector: float = 1.4
    logits: float = 4.0
    special: float = 0.2


@dataclass(frozen=True, slots=True)
class TinyOptions:
    """Options of a tiny checkpoint; sizes are counted as in config.json.

    `head_dim` None is hidden_size over num_attention_heads. `max_grid` is (rows, columns) of the largest tile grid.
    `max_grid_tiles` None writes plain "anyres". `extra_vision_layer` adds a layer that never runs (LLaVA-NeXT's 27th).
    `sparse` writes zeros that take no disk. `tokenizer_files` writes vocab.json and merges.txt instead of
    tokenizer.json.
    `video` makes a model for several pictures and videos, as llava-hf's, instead of one of VARCO's kind.
    """

    seed: int = 0
    text: Text = "qwen2"
    num_hidden_layers: int = 2
    hidden_size: int = 64
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int | None = None
    intermediate_size: int = 160
    vocab_size: int = 515
    tie_word_embeddings: bool = False
    num_vision_layers: int = 2
    vision_hidden_size: int = 48
    num_vision_heads: int = 4
    vision_intermediate_size: int = 80
    image_size: int = 58
    patch_size: int = 14
    max_grid: tuple[int, int] = (6, 6)
    max_grid_tiles: int | None = 9
    dtype: Dtype = "fp32"
    format: Format = "hf"
    names: Names = "old"
    extra_vision_layer: bool = False
    num_shards: int = 1
    tokenizer_files: bool = False
    sparse: bool = False
    max_position_embeddings: int = 32768
    rope_theta: float = 1e6
    repetition_penalty: float = 1.0
    video: bool = False
    scales: Scales = field(default_factory=Scales)

    @property
    def kind(self) -> LanguageModel:
        """Return what the language model has that others lack."""
        return LANGUAGE_MODELS[self.text]

    def to_config(self) -> ModelConfig:
        """Return the configuration that `Checkpoint.open` reads back from the files."""
        return ModelConfig(
            family="hf" if self.format == "hf" else "llava_next",
            vision=VisionConfig(
                hidden_size=self.vision_hidden_size,
                num_hidden_layers=self.num_vision_layers,
                num_attention_heads=self.num_vision_heads,
                intermediate_size=self.vision_intermediate_size,
                image_size=self.image_size,
                patch_size=self.patch_size,
                layer_norm_eps=1e-6,
            ),
            text=TextConfig(
                hidden_size=self.hidden_size,
                num_hidden_layers=self.num_hidden_layers,
                num_attention_heads=self.num_attention_heads,
                num_key_value_heads=self.num_key_value_heads,
                head_dim=self.head_dim or self.hidden_size // self.num_attention_heads,
                intermediate_size=self.intermediate_size,
                vocab_size=self.vocab_size,
                rms_norm_eps=1e-6,
                rope_theta=self.rope_theta,
                max_position_embeddings=self.max_position_embeddings,
                tie_word_embeddings=self.tie_word_embeddings,
                qkv_bias=self.kind.qkv_bias,
                qk_norm=self.kind.qk_norm,
            ),
            projector_hidden_act="gelu",
            image=ImageSettings(
                tile_px=self.image_size,
                patch_px=self.patch_size,
                grid_pinpoints=tuple(pinpoints(self)),
                max_grid_tiles=self.max_grid_tiles,
                mean=(0.5, 0.5, 0.5),
                std=(0.5, 0.5, 0.5),
                rescale_factor=1 / 255,
            ),
            image_token_id=token_ids(self.video)["<image>"] if self.format == "hf" else None,
            eos_token_id=(token_ids(self.video)["<|im_end|>"],),
            raw={},
            num_dropped_vision_layers=int(self.extra_vision_layer) if self.format == "hf" else 1,
        )


_SO400M = {
    "num_vision_layers": 26,
    "vision_hidden_size": 1152,
    "num_vision_heads": 16,
    "vision_intermediate_size": 4304,
    "image_size": 384,
    "patch_size": 14,
}
_SO400M_PATCH_16 = _SO400M | {"patch_size": 16}
_QWEN3: dict[str, Any] = _SO400M_PATCH_16 | {
    "text": "qwen3",
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
_TEXT_KEYS = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
)
SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": _SO400M | dict(zip(_TEXT_KEYS, (24, 896, 14, 2, 4864, 152000, True), strict=True)),
    "7b": _SO400M | dict(zip(_TEXT_KEYS, (28, 3584, 28, 4, 18944, 152128, False), strict=True)),
    "14b": _SO400M | dict(zip(_TEXT_KEYS, (48, 5120, 40, 8, 13824, 151680, False), strict=True)),
    "72b": _SO400M | dict(zip(_TEXT_KEYS, (80, 8192, 64, 8, 29568, 152128, False), strict=True)),
    "2.0-1.7b": _QWEN3 | dict(zip(_TEXT_KEYS, (28, 2048, 16, 8, 6144, 151936, True), strict=True)),
    "2.0-14b": _QWEN3 | dict(zip(_TEXT_KEYS, (40, 5120, 40, 8, 17408, 151936, False), strict=True)),
}


def pinpoints(options: TinyOptions) -> Iterator[tuple[int, int]]:
    """Yield (height, width) of every grid, rows outside, as in VARCO-VISION's config."""
    rows, columns = options.max_grid
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            yield options.image_size * row, options.image_size * column


def check_options(options: TinyOptions) -> None:
    """Check the options.

    Raises:
        UsageError: No checkpoint has such sizes.
    """
    counts = {
        "--layers": options.num_hidden_layers,
        "--intermediate": options.intermediate_size,
        "--vision-layers": options.num_vision_layers,
        "--vision-intermediate": options.vision_intermediate_size,
        "--patch-size": options.patch_size,
        "--shards": options.num_shards,
        "--max-position": options.max_position_embeddings,
    }
    if options.text != "qwen2" and options.format != "hf":
        raise UsageError(f"--text is {options.text} and --format {options.format}, expected hf, its only format.")
    for flag, count in counts.items():
        if count < 1:
            raise UsageError(f"{flag} is {count}, expected 1 or more.")
    if options.max_grid_tiles is not None and options.max_grid_tiles < 1:
        raise UsageError(f"--max-grid-tiles is {options.max_grid_tiles}, expected 1 or more.")
    divided = [] if options.head_dim else [(options.hidden_size, options.num_attention_heads, "--hidden by --heads")]
    for count, parts, what in (
        *divided,
        (options.num_attention_heads, options.num_key_value_heads, "--heads by --kv-heads"),
        (options.vision_hidden_size, options.num_vision_heads, "--vision-hidden by --vision-heads"),
    ):
        if parts < 1 or count < 1 or count % parts:
            raise UsageError(f"{what} is {count} / {parts}, expected no remainder. Choose other sizes.")
    if options.head_dim is not None and (options.head_dim < 2 or options.head_dim % 2):
        raise UsageError(f"--head-dim is {options.head_dim}, expected an even number of 2 or more.")
    if options.head_dim is None and options.hidden_size // options.num_attention_heads % 2:
        raise UsageError(
            "--hidden by --heads is odd, expected an even head size for rotary positions. Choose other sizes."
        )
    if options.vocab_size < len(token_ids()):
        raise UsageError(f"--vocab is {options.vocab_size}, expected {len(token_ids())} or more, the tokenizer's size.")
    if options.patch_size > options.image_size:
        raise UsageError(f"--patch-size is {options.patch_size}, expected at most --image-size ({options.image_size}).")
