"""The random weights of a tiny checkpoint, shard by shard."""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from varco_export.checkpoint.expected_shapes import expected_shapes
from varco_export.reading.names import Scheme, disk_name
from varco_export.reading.tensor import NUMPY_DTYPES, SAFETENSORS_NAMES
from varco_export.tiny.options import TinyOptions
from varco_export.tiny.tokenizer import SPECIAL_TOKENS, token_ids
from varco_export.writing.json_file import write_json
from varco_export.writing.safetensors_header import make_header
from varco_runtime.dtypes import ITEM_BYTES, Array


def write_weights(folder: Path, options: TinyOptions) -> None:
    """Write the shards, and their index where there are several."""
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
        write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(index.items()))},
        )


def _all_shapes(options: TinyOptions) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what the network needs and checkpoints hold besides: post_layernorm, an unused layer."""
    config = options.to_config()
    if options.extra_vision_layer:
        vision = replace(config.vision, num_hidden_layers=options.num_vision_layers + 1)
        config = replace(config, vision=vision)
    shapes = expected_shapes(config)
    for name in ("weight", "bias"):
        shapes[f"vision_tower.post_layernorm.{name}"] = (options.vision_hidden_size,)
    return shapes


def _split(shapes: dict[str, tuple[int, ...]], options: TinyOptions) -> list[list[str]]:
    """Return names in order, cut into shards of about equal bytes, none of them empty."""
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
    dtype = SAFETENSORS_NAMES[options.dtype]
    header = make_header(
        {disk_name(name, scheme): (dtype, shape, _nbytes(shape, options)) for name, shape in shapes.items()}
    )
    with path.open("wb") as file:
        file.write(header)
        if options.sparse:
            file.truncate(len(header) + sum(_nbytes(shape, options) for shape in shapes.values()))
            return
        for name, shape in shapes.items():
            file.write(_random(name, shape, options).view(np.uint8).data)


def _nbytes(shape: tuple[int, ...], options: TinyOptions) -> int:
    return math.prod(shape) * ITEM_BYTES[options.dtype]


def _random(name: str, shape: tuple[int, ...], options: TinyOptions) -> Array:
    """Draw a flat tensor, the same for the same seed and canonical name."""
    generator = np.random.default_rng([options.seed, zlib.crc32(name.encode())])
    mean, std = _mean_and_std(name, shape, options)
    values = generator.standard_normal(shape, np.float32) * np.float32(std) + np.float32(mean)
    table = "language_model.embed_tokens.weight" if options.tie_word_embeddings else "lm_head.weight"
    if name == table:
        values[_special_rows(options)] *= options.scales.special
    return values.astype(NUMPY_DTYPES[options.dtype]).reshape(-1)


def _special_rows(options: TinyOptions) -> slice:
    return slice(min(token_ids()[token] for token in SPECIAL_TOKENS), options.vocab_size)


def _mean_and_std(name: str, shape: tuple[int, ...], options: TinyOptions) -> tuple[float, float]:
    scales = options.scales
    per_input = 1 / math.sqrt(math.prod(shape[1:]))  # keeps a linear's output as large as its input
    vision = name.startswith("vision_tower.")
    if re.search(r"\.[qk]_norm\.weight$", name):
        return scales.query_key, scales.head_norm
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
