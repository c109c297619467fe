"""A checkpoint of random weights in the real architecture, in either format, made without torch.

    python -m varco_export.tiny OUT --seed 1 --layers 3 --heads 6 --kv-heads 2 --format llava-next

Every tensor is drawn from a generator keyed by the seed and its canonical name, so that the two formats of one seed
hold the same weights. With the usual std of 0.02 a random model repeats one token; here each layer's output is about as
large as what flows into it (`Scales`), so that greedy text wanders and depends on the picture. `--shape 14b --sparse`
makes a file of the real shapes whose zeros take no disk.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from varco_export.checkpoint import expected_shapes
from varco_export.config import ModelConfig, TextConfig, VisionConfig
from varco_export.names import Scheme, disk_name
from varco_export.tensor import FLOAT_DTYPES, NUMPY_DTYPES, Array, Dtype
from varco_runtime.errors import UsageError, VarcoError
from varco_runtime.settings import ImageSettings

Format = Literal["hf", "llava-next"]
Names = Literal["old", "new"]

_SAFETENSORS_DTYPES: dict[Dtype, str] = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
_TORCH_DTYPES: dict[Dtype, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True, slots=True)
class Scales:
    """How large random weights are. A linear's std is its gain over the square root of its inputs.

    `query_key` sharpens attention; `attention` and `mlp` are what a layer adds to the residual; `logits` is the std of
    the logits; `special` scales the head's rows of special tokens and past the tokenizer, so that text rarely ends.
    """

    embedding: float = 1.0
    query_key: float = 1.6
    attention: float = 2.0
    mlp: float = 2.0
    bias: float = 0.3
    norm: float = 0.2
    vision: float = 1.0
    projector: float = 1.4
    logits: float = 4.0
    special: float = 0.2


@dataclass(frozen=True, slots=True)
class TinyOptions:
    """What the checkpoint is to look like. `max_grid` is (rows, columns) of the largest tile grid; `extra_vision_layer`
    adds a layer that never runs (LLaVA-NeXT's 27th); `max_grid_tiles` None writes plain "anyres"."""

    seed: int = 0
    num_hidden_layers: int = 2
    hidden_size: int = 64
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
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
    scales: Scales = field(default_factory=Scales)

    def to_config(self) -> ModelConfig:
        """The configuration that `Checkpoint.open` reads back from the files."""
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
                head_dim=self.hidden_size // self.num_attention_heads,
                intermediate_size=self.intermediate_size,
                vocab_size=self.vocab_size,
                rms_norm_eps=1e-6,
                rope_theta=self.rope_theta,
                max_position_embeddings=self.max_position_embeddings,
                tie_word_embeddings=self.tie_word_embeddings,
            ),
            projector_hidden_act="gelu",
            image=ImageSettings(
                tile_px=self.image_size,
                patch_px=self.patch_size,
                grid_pinpoints=tuple(_pinpoints(self)),
                max_grid_tiles=self.max_grid_tiles,
                mean=(0.5, 0.5, 0.5),
                std=(0.5, 0.5, 0.5),
                rescale_factor=1 / 255,
            ),
            image_token_id=token_ids()["<image>"] if self.format == "hf" else None,
            eos_token_id=(token_ids()["<|im_end|>"],),
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
}


def make_tiny(out: Path, options: TinyOptions = TinyOptions()) -> Path:
    """Write the checkpoint to the new folder `out` and return it. Whole or absent: renamed when complete."""
    _check(options)
    out = Path(out)
    if out.exists():
        raise UsageError(f"{out} exists, expected a new folder. Choose another name or remove it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _write_json(partial / "config.json", _config_json(options))
        _write_json(partial / "generation_config.json", _generation_json(options))
        if options.format == "hf":
            _write_json(partial / "preprocessor_config.json", _preprocessor_json(options))
            _write_json(partial / "processor_config.json", _processor_json(options))
            _write_json(partial / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
        _write_tokenizer(partial, options)
        (partial / "README.md").write_text(_README, encoding="utf-8")
        _write_weights(partial, options)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _check(options: TinyOptions) -> None:
    counts = {
        "--layers": options.num_hidden_layers,
        "--intermediate": options.intermediate_size,
        "--vision-layers": options.num_vision_layers,
        "--vision-intermediate": options.vision_intermediate_size,
        "--patch-size": options.patch_size,
        "--shards": options.num_shards,
        "--max-position": options.max_position_embeddings,
    }
    for flag, count in counts.items():
        if count < 1:
            raise UsageError(f"{flag} is {count}, expected 1 or more.")
    if options.max_grid_tiles is not None and options.max_grid_tiles < 1:
        raise UsageError(f"--max-grid-tiles is {options.max_grid_tiles}, expected 1 or more.")
    for count, parts, what in (
        (options.hidden_size, options.num_attention_heads, "--hidden by --heads"),
        (options.num_attention_heads, options.num_key_value_heads, "--heads by --kv-heads"),
        (options.vision_hidden_size, options.num_vision_heads, "--vision-hidden by --vision-heads"),
    ):
        if parts < 1 or count < 1 or count % parts:
            raise UsageError(f"{what} is {count} / {parts}, expected no remainder. Choose other sizes.")
    if options.hidden_size // options.num_attention_heads % 2:
        raise UsageError(
            "--hidden by --heads is odd, expected an even head size for rotary positions. Choose other sizes."
        )
    if options.vocab_size < len(token_ids()):
        raise UsageError(f"--vocab is {options.vocab_size}, expected {len(token_ids())} or more, the tokenizer's size.")
    if options.patch_size > options.image_size:
        raise UsageError(f"--patch-size is {options.patch_size}, expected at most --image-size ({options.image_size}).")


# --- weights ----------------------------------------------------------------------------------------------------------


def _write_weights(folder: Path, options: TinyOptions) -> None:
    scheme: Scheme = "llava_next" if options.format == "llava-next" else "hf_old" if options.names == "old" else "hf_5"
    shapes = _all_shapes(options)
    shards = _split(shapes, options)
    index: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        index |= {disk_name(name, scheme): file for name in names}
        _write_shard(folder / file, {name: shapes[name] for name in names}, scheme, options)
    if len(shards) > 1:
        total_bytes = sum(_nbytes(shape, options) for shape in shapes.values())
        _write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(index.items()))},
        )


def _all_shapes(options: TinyOptions) -> dict[str, tuple[int, ...]]:
    """What the network needs, and what checkpoints hold besides: post_layernorm, and a layer that never runs."""
    config = options.to_config()
    if options.extra_vision_layer:
        vision = replace(config.vision, num_hidden_layers=options.num_vision_layers + 1)
        config = replace(config, vision=vision)
    shapes = expected_shapes(config)
    for name in ("weight", "bias"):
        shapes[f"vision_tower.post_layernorm.{name}"] = (options.vision_hidden_size,)
    return shapes


def _split(shapes: dict[str, tuple[int, ...]], options: TinyOptions) -> list[list[str]]:
    """Names in order, cut into shards of about equal bytes, none of them empty."""
    count = min(options.num_shards, len(shapes))
    goal = sum(_nbytes(shape, options) for shape in shapes.values()) / count
    shards: list[list[str]] = [[]]
    filled = 0
    for left, (name, shape) in zip(range(len(shapes), 0, -1), shapes.items(), strict=True):
        wanted = count - len(shards)  # shards still to open
        if shards[-1] and wanted and (filled >= goal * len(shards) or left == wanted):
            shards.append([])
        shards[-1].append(name)
        filled += _nbytes(shape, options)
    return shards


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], scheme: Scheme, options: TinyOptions) -> None:
    """8 bytes little-endian header size, JSON header padded to 8 bytes, tensors without gaps."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _nbytes(shape, options)
        header[disk_name(name, scheme)] = {
            "dtype": _SAFETENSORS_DTYPES[options.dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if options.sparse:
            file.truncate(8 + len(text) + end)
            return
        for name, shape in shapes.items():
            file.write(_random(name, shape, options).view(np.uint8).data)


def _nbytes(shape: tuple[int, ...], options: TinyOptions) -> int:
    return math.prod(shape) * NUMPY_DTYPES[options.dtype].itemsize


def _random(name: str, shape: tuple[int, ...], options: TinyOptions) -> Array:
    """A flat tensor, the same for the same seed and canonical name."""
    generator = np.random.default_rng([options.seed, zlib.crc32(name.encode())])
    mean, std = _mean_and_std(name, shape, options)
    values = generator.standard_normal(shape, np.float32) * np.float32(std) + np.float32(mean)
    table = "language_model.embed_tokens.weight" if options.tie_word_embeddings else "lm_head.weight"
    if name == table:
        values[_special_rows(options)] *= options.scales.special
    return values.astype(NUMPY_DTYPES[options.dtype]).reshape(-1)


def _special_rows(options: TinyOptions) -> slice:
    return slice(min(token_ids()[token] for token in _SPECIAL_TOKENS), options.vocab_size)


def _mean_and_std(name: str, shape: tuple[int, ...], options: TinyOptions) -> tuple[float, float]:
    scales = options.scales
    per_input = 1 / math.sqrt(math.prod(shape[1:]))  # keeps a linear's output as large as its input
    vision = name.startswith("vision_tower.")
    if re.search(r"norm\d?\.weight$", name):
        return 1.0, scales.norm
    if name.endswith(".bias"):
        return 0.0, scales.bias
    if name == "image_newline":
        return 0.0, scales.embedding
    if name.endswith("embed_tokens.weight"):
        return 0.0, scales.logits * per_input if options.tie_word_embeddings else scales.embedding
    if name == "lm_head.weight":
        return 0.0, scales.logits * per_input
    if name.endswith("position_embedding.weight"):
        return 0.0, scales.embedding
    if re.search(r"\.[qk]_proj\.", name):
        return 0.0, scales.query_key * per_input
    if vision:
        return 0.0, scales.vision * per_input * (2 if "patch_embedding" in name else 1)
    if name.startswith("multi_modal_projector."):
        return 0.0, scales.projector * per_input
    return 0.0, (scales.attention if ".self_attn." in name else scales.mlp) * per_input


# --- configuration ----------------------------------------------------------------------------------------------------


def _config_json(options: TinyOptions) -> dict[str, Any]:
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
        "bos_token_id": token_ids()["<|endoftext|>"],
        "eos_token_id": token_ids()["<|im_end|>"],
    }
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
    dtype = _TORCH_DTYPES[options.dtype]
    if options.format == "hf":
        extra = int(options.extra_vision_layer)
        new = options.names == "new"
        if new:
            text["rope_parameters"] = {"rope_type": "default", "rope_theta": text.pop("rope_theta")}
        return {
            "architectures": ["LlavaOnevisionForConditionalGeneration"],
            "model_type": "llava_onevision",
            "dtype" if new else "torch_dtype": dtype,
            "image_token_id" if new else "image_token_index": token_ids()["<image>"],
            "video_token_id" if new else "video_token_index": token_ids()["[UNK]"],
            "image_grid_pinpoints": [list(pair) for pair in _pinpoints(options)],
            "projector_hidden_act": "gelu",
            "text_config": {"model_type": "qwen2", **text},
            "tie_word_embeddings": options.tie_word_embeddings,
            "vision_aspect_ratio": _aspect_ratio(options),
            "vision_config": {**vision, "num_hidden_layers": options.num_vision_layers + extra},
            "vision_feature_layer": -1 - extra,
            "vision_feature_select_strategy": "full",
        }
    return {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava_qwen",
        "torch_dtype": dtype,
        **text,
        "image_aspect_ratio": _aspect_ratio(options),
        "image_grid_pinpoints": [[width, height] for height, width in _pinpoints(options)],
        "mm_hidden_size": options.vision_hidden_size,
        "mm_newline_position": "one_token",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "varco-edge/tiny-siglip",
        "vision_config": vision,
    }


def _pinpoints(options: TinyOptions) -> Iterator[tuple[int, int]]:
    """(height, width) of every grid, rows outside, as in VARCO-VISION's config."""
    rows, columns = options.max_grid
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            yield options.image_size * row, options.image_size * column


def _preprocessor_json(options: TinyOptions) -> dict[str, Any]:
    return {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_grid_pinpoints": [list(pair) for pair in _pinpoints(options)],
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": options.image_size, "width": options.image_size},
    }


def _processor_json(options: TinyOptions) -> dict[str, Any]:
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


def _generation_json(options: TinyOptions) -> dict[str, Any]:
    ids = token_ids()
    generation: dict[str, Any] = {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    if options.repetition_penalty != 1.0:
        generation["repetition_penalty"] = options.repetition_penalty
    return generation


# --- tokenizer --------------------------------------------------------------------------------------------------------

_SPECIAL_TOKENS: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "[UNK]",
    "<gro>",
    "<ocr>",
    "<char>",
    "</char>",
)
_SPECIAL_TOKENS += ("<obj>", "</obj>", "<bbox>", "</bbox>", "<delim>", "<image>")

# Words that get a token of their own, and on the way there one for each of their beginnings.
_WORDS = (
    "system user assistant picture image text What is in the this Describe You about and of how many colour "
    "대한민국 수도 사진 글자 고양이"
)

# Qwen2's own pattern: contractions, words, single digits, punctuation, line breaks, spaces.
_PRE_TOKENIZE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# ChatML. Message content may be a string or a list of parts; pictures come before the text of their turn.
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou look at pictures and answer questions about them.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}
{{- '<image>\\n' -}}
{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- part['text'] -}}{%- endgeneration -%}
{%- else -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def token_ids() -> dict[str, int]:
    """Every token of the tokenizer and its id: bytes, merges, then the special tokens, `<image>` last."""
    vocab = _bpe()[0]
    return vocab | {token: len(vocab) + number for number, token in enumerate(_SPECIAL_TOKENS)}


def _bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level BPE: the 256 bytes, and merges that build the words of `_WORDS` from left to right."""
    letters = _byte_letters()
    vocab = {letter: number for number, letter in enumerate(letters)}
    merges: list[tuple[str, str]] = []
    for word in _WORDS.split():
        for spelled in (word, " " + word):
            pieces = [letters[byte] for byte in spelled.encode()]
            left = pieces[0]
            for right in pieces[1:]:
                if left + right not in vocab:
                    vocab[left + right] = len(vocab)
                    merges.append((left, right))
                left += right
    return vocab, merges


def _byte_letters() -> list[str]:
    """The printable letter that byte-level BPE writes for each byte. Source: GPT-2's encoder, `bytes_to_unicode`."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def _write_tokenizer(folder: Path, options: TinyOptions) -> None:
    vocab, merges = _bpe()
    ids = token_ids()
    special = _SPECIAL_TOKENS if options.format == "hf" else _SPECIAL_TOKENS[:-1]  # LLaVA-NeXT has no <image> token
    added = [
        {"id": ids[token], "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for token in special
    ]  # fmt: skip
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
            },
            "additional_special_tokens": [token for token in special if token.startswith("<") and "|" not in token],
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": options.max_position_embeddings,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": "[UNK]",
        },
    )
    if options.tokenizer_files:
        _write_json(folder / "vocab.json", vocab)
        lines = "".join(f"{left} {right}\n" for left, right in merges)
        (folder / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
        _write_json(folder / "added_tokens.json", {token: ids[token] for token in special})
        return
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": _PRE_TOKENIZE}, "behavior": "Isolated", "invert": False}
    _write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": vocab,
                "merges": [list(pair) for pair in merges],
            },
        },
    )


# --- files and the command line ---------------------------------------------------------------------------------------

_README = """\
---
license: apache-2.0
---

Random weights in the architecture of LLaVA-OneVision, made by `python -m varco_export.tiny`. It answers nonsense.
"""


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _grid(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWSxCOLUMNS, such as 2x2")
    return int(found[1]), int(found[2])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m varco_export.tiny", description="Make a checkpoint of random weights."
    )
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--shape", choices=SHAPES, help="the sizes of a real model; use it with --sparse")
    numbers = {
        "--seed": "seed",
        "--layers": "num_hidden_layers",
        "--hidden": "hidden_size",
        "--heads": "num_attention_heads",
        "--kv-heads": "num_key_value_heads",
        "--intermediate": "intermediate_size",
        "--vocab": "vocab_size",
        "--vision-layers": "num_vision_layers",
        "--vision-hidden": "vision_hidden_size",
        "--vision-heads": "num_vision_heads",
        "--vision-intermediate": "vision_intermediate_size",
        "--image-size": "image_size",
        "--patch-size": "patch_size",
        "--max-grid-tiles": "max_grid_tiles",
        "--shards": "num_shards",
        "--max-position": "max_position_embeddings",
    }
    for flag, name in numbers.items():
        parser.add_argument(flag, dest=name, type=int, metavar="N")
    parser.add_argument("--repetition-penalty", dest="repetition_penalty", type=float, metavar="X")
    parser.add_argument("--grid", dest="max_grid", type=_grid, metavar="ROWSxCOLUMNS", help="the largest tile grid")
    parser.add_argument("--dtype", choices=FLOAT_DTYPES)
    parser.add_argument("--format", choices=("hf", "llava-next"))
    parser.add_argument("--names", choices=("old", "new"), help="weight names of transformers 4.45 or 5 (hf only)")
    tied = parser.add_mutually_exclusive_group()
    tied.add_argument("--tied", dest="tie_word_embeddings", action="store_true")
    tied.add_argument("--untied", dest="tie_word_embeddings", action="store_false")
    parser.add_argument("--extra-vision-layer", action="store_true", help="add a last vision layer that never runs")
    parser.add_argument("--tokenizer-files", action="store_true", help="vocab.json and merges.txt, no tokenizer.json")
    parser.add_argument("--sparse", action="store_true", help="zeros as a hole in the file, which takes no disk")
    parser.set_defaults(tie_word_embeddings=None, extra_vision_layer=None, tokenizer_files=None, sparse=None)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    values = {key: value for key, value in vars(_parser().parse_args(arguments)).items() if value is not None}
    out, shape = values.pop("out"), values.pop("shape", None)
    options: dict[str, Any] = (SHAPES[shape] if shape else {}) | values
    try:
        print(make_tiny(out, TinyOptions(**options)))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except (VarcoError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
