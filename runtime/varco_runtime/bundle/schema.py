"""`bundle.json` to `Manifest` and back: one spelling, types, bounds and contradictions, before a number is used."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, cast, get_args, get_origin, get_type_hints

from varco_runtime.bundle.bounds import OneOf, Pattern, Range
from varco_runtime.bundle.manifest import Embedding, HeadRows, Manifest
from varco_runtime.dtypes import ITEM_BYTES

MANIFEST = "bundle.json"
MAX_FILES = 256
BLOCK_SIZES = (32, 64, 128)
"""Integers of an output head that share a scale."""
MAX_DEPTH = 16
MAX_ITEMS = 4096
MAX_CHARS = 4096
MAX_KV_CACHE_BYTES = 1 << 42
MAX_GRID_PIXELS = 1 << 25
MAX_GRID_PATCHES = 1 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}){0,3}")


def serialize(document: dict[str, Any]) -> bytes:
    """Return the one spelling of a manifest. `digest` is the sha256 of the text without it."""
    content = {key: value for key, value in document.items() if key != "digest"}
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True)
    content["digest"] = hashlib.sha256(text.encode()).hexdigest()
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


def no_constant(name: str) -> None:
    """Refuse NaN and the infinities, which JSON has not and Python's reader takes. Raises `ValueError`."""
    raise ValueError(f"{name} is no number")


def is_shallow(value: Any, levels: int) -> bool:
    """Return whether lists and objects are nested in `value` at most `levels` deep."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not children or (levels > 0 and all(is_shallow(child, levels - 1) for child in children))


def manifest_of(document: dict[str, Any]) -> Manifest:
    """Return the manifest of a parsed document.

    Raises:
        ValueError: It does not fit the schema, or contradicts itself: what, got and expected, without a full stop.
    """
    manifest: Manifest = _from_json(Manifest, {k: v for k, v in document.items() if k != "digest"}, "")
    if len(manifest.files) > MAX_FILES:
        raise ValueError(f"it lists {len(manifest.files)} files, expected at most {MAX_FILES}")
    for name in manifest.files:
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise ValueError(f"it lists the file name {short(name)}, expected a plain relative name")
    needed = [manifest.tokenizer, manifest.chat_template]
    needed += [] if manifest.embedding is None else [manifest.embedding.file]
    needed += [manifest.embedding.head_rows.file] if manifest.embedding and manifest.embedding.head_rows else []
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
    """Yield the faults that no single value shows."""
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
    media, prompt = manifest.media_facts, manifest.prompt
    if (media.video_token is None) is not (media.video_token_id is None):
        yield f"media.video_token_id is {media.video_token_id}, expected one if there is a video_token, and only then"
    if media.video_token == prompt.image_token and media.video_token_id != prompt.image_token_id:
        yield f"media.video_token_id is {media.video_token_id}, expected that of the same prompt.image_token"
    if manifest.kv_cache is not None and (manifest.device != "cpu" or manifest.kv_cache == "bf16"):
        yield f"kv_cache is {manifest.kv_cache} for {manifest.device}, expected null, or fp32 or fp16 on a CPU"
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
    if embedding.head_rows is not None:
        yield from _head_rows_faults(manifest, embedding.head_rows)
    expected = embedding.num_stored_rows * embedding.width * ITEM_BYTES[embedding.dtype]
    if manifest.files[embedding.file].size != expected:
        yield f"{embedding.file} has {manifest.files[embedding.file].size} bytes, expected {expected} by its shape"


def _head_rows_faults(manifest: Manifest, head: HeadRows) -> Iterator[str]:
    model, decoder = manifest.model, manifest.decoder
    if manifest.device != "cpu":
        yield f"embedding.head_rows is given for {manifest.device}, expected it in bundles for the CPU alone"
    if head.file != decoder.data:
        yield f"embedding.head_rows.file is {short(head.file)}, expected the decoder's weights {short(decoder.data)}"
    if head.block_size not in BLOCK_SIZES:
        yield f"embedding.head_rows.block_size is {head.block_size}, expected one of {BLOCK_SIZES}"
    size = manifest.files[head.file].size
    row_bytes = head.row_bytes(model.hidden_size, ITEM_BYTES[decoder.compute])
    for name, offset, num_bytes in zip(
        ("values_offset", "scales_offset"), (head.values_offset, head.scales_offset), row_bytes, strict=True
    ):
        end = offset + model.vocab_size * num_bytes
        if end > size:
            yield f"embedding.head_rows.{name} is {offset}, expected rows that end within the file of {size} bytes"


_NETWORKS = {
    "cpu": (),
    "tensorrt": ("packing", "embedding"),
    "cuda": ("pixels", "packing", "sampling"),
}
"""What each device needs beside the networks that all have."""
LATER_KEYS = frozenset({"media", "ocr_long_side_px", "head_rows", "kv_cache", "slots"})
"""Keys that bundles of this format version may lack, because earlier exports did not write them: None by default."""


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields, with the bounds that are written beside them."""
    return get_type_hints(cls, include_extras=True)


def _from_json(cls: type, value: object, where: str) -> Any:
    """Return a dataclass made of parsed JSON: every field present, none unknown, each of its type and in its bounds."""
    if not isinstance(value, dict):
        raise ValueError(f"{where.rstrip('.')} is {_kind(value)}, expected an object")
    hints = _hints(cls)
    for name in hints:
        if name not in value and name not in LATER_KEYS:
            raise ValueError(f"{where}{name} is missing, expected it there")
    if unknown := set(value) - set(hints):
        raise ValueError(f"{where.rstrip('.') or 'it'} holds {short(min(unknown))}, expected only known keys")
    given = {name: hint for name, hint in hints.items() if name in value}
    return cls(**{name: _convert(hint, value[name], f"{where}{name}") for name, hint in given.items()})


def _convert(hint: Any, value: Any, where: str, bound: Range | OneOf | Pattern | None = None) -> Any:
    """Return `value` as the field type `hint` says, within the bound that stands beside it."""
    if dataclasses.is_dataclass(hint):
        return _from_json(cast("type", hint), value, f"{where}.")
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _convert(arguments[0], value, where, arguments[1])
    if origin in (Union, types.UnionType):  # always with None
        return None if value is None else _convert(arguments[0], value, where)
    if origin is tuple:
        return _tuple(arguments, value, where)
    if origin is dict and arguments[1] is not Any:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {_kind(value)}, expected an object")
        return {name: _convert(arguments[1], item, f"{where}[{short(name)}]") for name, item in value.items()}
    return _plain(origin or hint, value, where, bound)


def _plain(kind: type, value: Any, where: str, bound: Range | OneOf | Pattern | None) -> Any:
    expected, accepted = _PLAIN[kind]
    if type(value) not in accepted:
        raise ValueError(f"{where} is {_kind(value)}, expected {expected}")
    if kind is str and not 0 < len(value) <= MAX_CHARS:
        raise ValueError(f"{where} has {len(value)} characters, expected 1 to {MAX_CHARS}")
    assert bound is not None or kind not in (int, float), f"Bug: {where} has no Range"
    if bound is not None and (fault := bound.fault(value, short(value))) is not None:
        raise ValueError(f"{where} {fault}")
    return float(value) if kind is float else value


def _tuple(hints: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    """Return a list as `tuple[X, ...]`, of any length up to `MAX_ITEMS`, or as `tuple[X, Y]` of exactly that one."""
    if not isinstance(value, list):
        raise ValueError(f"{where} is {_kind(value)}, expected a list")
    if hints[-1] is ...:
        if len(value) > MAX_ITEMS:
            raise ValueError(f"{where} has {len(value)} entries, expected at most {MAX_ITEMS}")
        hints = hints[:1] * len(value)
    if len(value) != len(hints):
        raise ValueError(f"{where} has {len(value)} entries, expected {len(hints)}")
    return tuple(_convert(hint, item, where) for hint, item in zip(hints, value, strict=True))


_PLAIN: dict[type, tuple[str, tuple[type, ...]]] = {
    int: ("an integer", (int,)),
    str: ("text", (str,)),
    float: ("a number", (int, float)),
    bool: ("true or false", (bool,)),
    dict: ("an object", (dict,)),
}


def _kind(value: object) -> str:
    """Return what JSON calls the type of `value`."""
    if isinstance(value, list):
        return "a list"
    return next((name for name, accepted in _PLAIN.values() if type(value) in accepted), "null")


def short(value: object) -> str:
    """Return a hostile value as one short piece of a line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
