"""`bundle.json` to `Manifest` and back: one spelling, types, bounds and contradictions, before a number is used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from varco_runtime.bundle.manifest import (
    FORMAT_VERSION,
    Component,
    Embedding,
    EngineFacts,
    FileFacts,
    Manifest,
    ModelFacts,
)
from varco_runtime.bundle.settings import GenerationSettings, ImageSettings, PromptSettings
from varco_runtime.dtypes import ITEM_BYTES

MANIFEST = "bundle.json"
MAX_FILES = 256
MAX_DEPTH = 16
MAX_ITEMS = 4096
MAX_CHARS = 4096
MAX_KV_CACHE_BYTES = 1 << 42
MAX_GRID_PIXELS = 1 << 25
MAX_GRID_PATCHES = 1 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}){0,3}")


def serialise(document: dict[str, Any]) -> bytes:
    """The one spelling of a manifest. `digest` is the sha256 of the text without it."""
    content = {key: value for key, value in document.items() if key != "digest"}
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True)
    content["digest"] = hashlib.sha256(text.encode()).hexdigest()
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


def no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def is_shallow(value: Any, levels: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not children or (levels > 0 and all(is_shallow(child, levels - 1) for child in children))


_LIMITS: dict[str, tuple[float, float]] = {
    "Manifest.format_version": (FORMAT_VERSION, FORMAT_VERSION),
    "Manifest.max_context": (16, 1 << 20),
    "ModelFacts.hidden_size": (1, 1 << 16),
    "ModelFacts.num_layers": (1, 1 << 10),
    "ModelFacts.num_attention_heads": (1, 1 << 10),
    "ModelFacts.num_key_value_heads": (1, 1 << 10),
    "ModelFacts.head_dim": (1, 1 << 12),
    "ModelFacts.vocab_size": (1, 1 << 22),
    "ModelFacts.vision_layers": (1, 1 << 10),
    "ModelFacts.vision_hidden_size": (1, 1 << 16),
    "ModelFacts.num_parameters": (1, 1 << 50),
    "ImageSettings.tile_px": (1, 1 << 12),
    "ImageSettings.patch_px": (1, 1 << 12),
    "ImageSettings.grid_pinpoints": (1, 1 << 16),
    "ImageSettings.max_grid_tiles": (1, 1 << 16),
    "ImageSettings.mean": (-1e6, 1e6),
    "ImageSettings.std": (1e-6, 1e6),
    "ImageSettings.rescale_factor": (1e-9, 1e6),
    "PromptSettings.image_token_id": (-(1 << 22), 1 << 22),  # LLaVA-NeXT's is -200
    "GenerationSettings.eos_token_ids": (0, 1 << 22),
    "GenerationSettings.repetition_penalty": (1e-6, 1e6),
    "GenerationSettings.suggested": (-1e9, 1e9),
    "Component.weight_bytes": (0, 1 << 50),
    "EngineFacts.max_context": (16, 1 << 20),
    "EngineFacts.max_tiles": (1, 1 << 16),
    "EngineFacts.prefill_tokens": (1, 1 << 20),
    "EngineFacts.max_logits": (1, 1 << 20),
    "Embedding.rows": (2, (1 << 22) + 1),
    "Embedding.width": (1, 1 << 16),
    "FileFacts.size": (0, 1 << 50),
}
"""Least and greatest value of every number, far beyond any model of this family: what a loop or allocation may cost."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "Manifest.device": ("cpu", "cuda", "tensorrt"),
    "PromptSettings.content_format": ("parts", "string"),
    "Component.compute": ("fp32", "fp16", "bf16"),
    "EngineFacts.component": ("vision", "projector", "packing", "embedding", "decoder"),
    "EngineFacts.builder": ("tensorrt", "tensorrt_rtx"),
    "Embedding.dtype": ("fp32", "fp16", "bf16"),
}


def manifest_of(document: dict[str, Any]) -> Manifest:
    """The manifest of a parsed document. Raises `ValueError` that says what, got and expected."""
    manifest: Manifest = _from_json(Manifest, {k: v for k, v in document.items() if k != "digest"}, "")
    if len(manifest.files) > MAX_FILES:
        raise ValueError(f"it lists {len(manifest.files)} files, expected at most {MAX_FILES}")
    for name in manifest.files:
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise ValueError(f"it lists the file name {short(name)}, expected a plain relative name")
    needed = [manifest.tokenizer, manifest.chat_template]
    needed += [] if manifest.embedding is None else [manifest.embedding.file]
    needed += [name for part in manifest.components.values() for name in (part.file, part.data)]
    needed += [engine.file for engine in manifest.engines]
    needed += [] if manifest.probes is None else [manifest.probes]
    for name in needed:
        if name not in manifest.files:
            raise ValueError(f"it names the file {short(name)}, expected a hash of it under files")
    for fault in _contradictions(manifest):
        raise ValueError(fault)
    return manifest


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """What no single value shows."""
    model, image, embedding = manifest.model, manifest.image, manifest.embedding
    if model.num_attention_heads % model.num_key_value_heads:
        yield (
            f"model.num_attention_heads is {model.num_attention_heads}, expected a multiple of "
            f"model.num_key_value_heads {model.num_key_value_heads}"
        )
    if manifest.device == "cpu" and embedding is None:
        yield "embedding is null, expected the token rows, which a bundle for the CPU reads"
    if embedding is not None:
        yield from _embedding_faults(manifest, embedding)
    if manifest.device == "cpu":
        for name, component in manifest.components.items():
            if component.compute == "bf16":
                yield f"{name}.compute is bf16, expected fp32 or fp16, the CPU's kernels"
    for name in _NETWORKS[manifest.device]:
        if name not in manifest.components:
            yield f"it has no {name} network, expected one in a bundle for {manifest.device}"
    cache_bytes = manifest.kv_bytes_per_token * manifest.max_context
    if cache_bytes > MAX_KV_CACHE_BYTES:
        yield f"a full context takes {cache_bytes} bytes of keys and values, expected at most {MAX_KV_CACHE_BYTES}"
    if image.patch_px > image.tile_px:
        yield f"image.patch_px is {image.patch_px}, expected at most image.tile_px {image.tile_px}"
    if not image.grid_pinpoints:
        yield "image.grid_pinpoints is empty, expected at least one (height, width)"
    for pin in image.grid_pinpoints:
        if any(side % image.tile_px for side in pin):
            yield f"image.grid_pinpoints holds {list(pin)}, expected multiples of image.tile_px {image.tile_px}"
        if math.prod(pin) > MAX_GRID_PIXELS or math.prod(pin) // image.patch_px**2 > MAX_GRID_PATCHES:
            yield (
                f"image.grid_pinpoints holds {list(pin)}, expected at most {MAX_GRID_PIXELS} pixels and "
                f"{MAX_GRID_PATCHES} patches of image.patch_px {image.patch_px}"
            )


def _embedding_faults(manifest: Manifest, embedding: Embedding) -> Iterator[str]:
    model = manifest.model
    if (embedding.rows, embedding.width) != (model.vocab_size + 1, model.hidden_size):
        yield (
            f"embedding has {embedding.rows} rows of {embedding.width}, expected {model.vocab_size + 1} of "
            f"{model.hidden_size}: vocab_size + 1 of hidden_size"
        )
    expected = embedding.rows * embedding.width * ITEM_BYTES[embedding.dtype]
    if manifest.files[embedding.file].size != expected:
        yield f"{embedding.file} has {manifest.files[embedding.file].size} bytes, expected {expected} by its shape"


_NETWORKS = {
    "cpu": (),
    "tensorrt": ("packing", "embedding"),
    "cuda": ("pixels", "packing", "sampling"),
}
"""What each device needs beside the networks that all have."""

_NESTED: dict[str, type] = {
    "ModelFacts": ModelFacts,
    "ImageSettings": ImageSettings,
    "PromptSettings": PromptSettings,
    "GenerationSettings": GenerationSettings,
    "Component": Component,
    "Embedding": Embedding,
    "EngineFacts": EngineFacts,
}


def _from_json(cls: type, value: object, where: str) -> Any:
    """A dataclass from parsed JSON: every field present, none unknown, each value of its type and within its limits."""
    if not isinstance(value, dict):
        raise ValueError(f"{where.rstrip('.')} is {_kind(value)}, expected an object")
    fields = {field.name: str(field.type) for field in dataclasses.fields(cls)}
    for name in fields:
        if name not in value:
            raise ValueError(f"{where}{name} is missing, expected it there")
    if unknown := set(value) - set(fields):
        raise ValueError(f"{where.rstrip('.') or 'it'} holds {short(min(unknown))}, expected only known keys")
    return cls(
        **{
            name: _convert(kind, value[name], f"{where}{name}", f"{cls.__name__}.{name}")
            for name, kind in fields.items()
        }
    )


def _convert(kind: str, value: Any, where: str, key: str) -> Any:
    """`value` as the field type `kind` (the annotation's text) says; `key` finds its limits."""
    if kind in _NESTED:
        return _from_json(_NESTED[kind], value, f"{where}.")
    if kind == "dict[str, FileFacts]":
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {_kind(value)}, expected an object")
        return {name: _from_json(FileFacts, facts, f"{where}[{short(name)}].") for name, facts in value.items()}
    if kind.endswith(" | None"):
        return None if value is None else _convert(kind.removesuffix(" | None"), value, where, key)
    if kind.startswith("tuple["):
        return _tuple(kind, value, where, key)
    expected, types = _PLAIN[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
        raise ValueError(f"{where} is {_kind(value)}, expected {expected}")
    if kind in ("int", "float"):
        low, high = _LIMITS[key]
        if not low <= value <= high:  # compared before conversion: float() of a huge integer raises
            raise ValueError(f"{where} is {short(value)}, expected {low} to {high}")
        return float(value) if kind == "float" else value
    if kind == "str":
        return _text(value, where, key)
    return value


def _text(value: str, where: str, key: str) -> str:
    if not 0 < len(value) <= MAX_CHARS:
        raise ValueError(f"{where} has {len(value)} characters, expected 1 to {MAX_CHARS}")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise ValueError(f"{where} is {short(value)}, expected one of: {', '.join(_CHOICES[key])}")
    if key == "FileFacts.sha256" and not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError(f"{where} is {short(value)}, expected 64 hexadecimal digits")
    return value


def _tuple(kind: str, value: Any, where: str, key: str) -> tuple[Any, ...]:
    """`tuple[int, ...]` of any length up to `MAX_ITEMS`, or `tuple[float, float, float]` of exactly that one."""
    kinds = _split(kind[len("tuple[") : -1])
    if not isinstance(value, list):
        raise ValueError(f"{where} is {_kind(value)}, expected a list")
    if kinds[-1] == "...":
        if len(value) > MAX_ITEMS:
            raise ValueError(f"{where} has {len(value)} entries, expected at most {MAX_ITEMS}")
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        raise ValueError(f"{where} has {len(value)} entries, expected {len(kinds)}")
    return tuple(_convert(one, item, where, key) for one, item in zip(kinds, value, strict=True))


def _split(kinds: str) -> list[str]:
    """`tuple[str, float], ...` at its outer commas."""
    return re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", kinds.replace(", ", ","))


_PLAIN: dict[str, tuple[str, Any]] = {
    "int": ("an integer", (int,)),
    "str": ("text", (str,)),
    "float": ("a number", (int, float)),
    "bool": ("true or false", (bool,)),
    "dict[str, Any]": ("an object", (dict,)),
}


def _kind(value: object) -> str:
    """What JSON calls the type of `value`."""
    if isinstance(value, list):
        return "a list"
    return next((name for name, types in _PLAIN.values() if type(value) in types), "null")


def short(value: object) -> str:
    """A hostile value as one short piece of a line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
