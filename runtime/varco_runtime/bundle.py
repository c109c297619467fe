"""The bundle: its one schema, and the checks before anything in it is used.

    bundle/
      bundle.json          the manifest below; its last field is a digest of the rest
      tokenizer.json  chat_template.jinja
      vision.onnx  projector.onnx  decoder.onnx  *.onnx.data
      embedding.bin        rows [vocab_size + 1, hidden] in the checkpoint's type; the last row is image_newline
      packing.onnx  embedding.onnx           for TensorRT alone, which packs and looks up on the device
      probes-1a2b3c4d.json                   questions with the exact model's answers, to prove the bundle by
      engines/sm89/*.engine                  made of the graphs by `varco engines`, for one kind of device each

The exporter fills a `Manifest` and calls `write_manifest`; the runtime calls `Bundle.open`. A bundle is not trusted:
the manifest is bounded before it is parsed and its numbers before they are used; every other file must be a plain file
of the recorded size and sha256, reached over no symbolic link, and only then does a library see it. Small files are
hashed at every opening, large ones when path, size, time or inode are new (`verified.py`). Files that the manifest does
not name are never opened.

What this does not do: the hashes lie in the bundle, so they tell of damage and of a part that was exchanged, not of who
made the whole. A graph refers to its data file by name, and that reference is covered by the graph's hash: it is as
good as the exporter that wrote it (onnxruntime 1.31 refuses one that leaves the folder). Load bundles of people whose
programs you would run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from varco_runtime.errors import BundleError, ExportError
from varco_runtime.settings import GenerationSettings, ImageSettings, PromptSettings
from varco_runtime.verified import Remembered

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
MAX_MANIFEST_BYTES = 4 << 20
MAX_FILES = 256
MAX_DEPTH = 16
MAX_ITEMS = 4096
MAX_CHARS = 4096
MAX_KV_CACHE_BYTES = 1 << 42
MAX_GRID_PIXELS = 1 << 25
MAX_GRID_PATCHES = 1 << 20
LARGE_SUFFIXES = (".data", ".bin")
"""Files hashed once and then remembered; everything else is hashed at every opening."""

_AGAIN = "Copy or export the bundle again."
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}){0,3}")


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What every file must be."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Component:
    """One network: its graph file, its data file, the types it works in, and what it weighs.

    `compute` is the element type of its inputs and outputs ("fp32", "fp16" or "bf16"), `precision` a description for
    people.
    `weight_bytes` are the bytes that one pass reads.
    """

    file: str
    data: str
    compute: str
    precision: str
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Embedding:
    """The token embedding table: raw rows, little endian; row `rows - 1` is image_newline."""

    file: str
    dtype: str
    rows: int
    width: int


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """A TensorRT engine of one component: what built it, for which device, and how far its profiles reach.

    `builder` is `tensorrt` or `tensorrt_rtx`; an engine runs on the very `builder_version` and `target` ("sm89") alone.
    The decoder and the embedding have two profiles: 0 for prefill, 1 .. `prefill_tokens` new positions and 1 ..
    `max_logits` logits; 1 for decoding, one of each. Both see 1 .. `max_context` positions, the length of the caches.
    `max_tiles` is the greatest number of tiles in one run of this component.
    """

    component: str
    file: str
    builder: str
    builder_version: str
    target: str
    precision: str
    max_context: int
    max_tiles: int
    prefill_tokens: int
    max_logits: int


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The shape of the language model, as far as the runtime needs it."""

    name: str
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    vision_layers: int
    vision_hidden_size: int
    num_parameters: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything `bundle.json` says."""

    format_version: int
    model: ModelFacts
    device: str
    max_context: int
    image: ImageSettings
    prompt: PromptSettings
    generation: GenerationSettings
    vision: Component
    projector: Component
    decoder: Component
    packing: Component | None
    token_lookup: Component | None
    embedding: Embedding
    tokenizer: str
    chat_template: str
    license: str
    provenance: dict[str, Any]
    engines: tuple[EngineFacts, ...]
    files: dict[str, FileFacts]
    probes: str | None = None

    @property
    def components(self) -> dict[str, Component]:
        """The networks by the names of their graphs; `packing` and `embedding` are there for TensorRT alone."""
        named = {
            "vision": self.vision,
            "projector": self.projector,
            "packing": self.packing,
            "embedding": self.token_lookup,
            "decoder": self.decoder,
        }
        return {name: component for name, component in named.items() if component is not None}

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one position occupies in all layers."""
        model = self.model
        element = _ELEMENT_BYTES[self.decoder.compute]
        return 2 * model.num_layers * model.num_key_value_heads * model.head_dim * element


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files have been checked."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], verify: str = "quick", progress: Callable[[str, int], None] | None = None
    ) -> Bundle:
        """Read the manifest and check every file.

        `verify`: `quick` remembers the hash of large files that have not changed since, `full` hashes everything.
        `progress(file, num_bytes)` is called as bytes are hashed. Raises `BundleError`.
        """
        path = Path(folder)
        manifest = read_manifest(path)
        remembered = Remembered.load()
        for name, facts in sorted(manifest.files.items()):
            check_file(path, name, facts, remembered, full=verify == "full", progress=progress)
        remembered.save()
        return cls(path, manifest)

    def path(self, name: str) -> Path:
        assert name in self.manifest.files, f"Bug: {name} is not a file of this bundle"
        return self.folder / name

    def text(self, name: str) -> str:
        try:
            return self.path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{name} of {self.folder} cannot be read: {error}. Export the bundle again.") from None


def read_manifest(folder: Path) -> Manifest:
    """Parse `bundle.json`, which must be byte for byte what `write_manifest` writes. Raises `BundleError`."""
    path = folder / MANIFEST
    document = _parse(path, _manifest_bytes(folder, path))
    version = document["format_version"]
    if type(version) is not int or version != FORMAT_VERSION:
        newer = type(version) is int and version > FORMAT_VERSION
        step = "Upgrade varco-edge, or export the bundle again." if newer else _AGAIN
        raise BundleError(
            f"{path} has format version {_short(version)}, this varco-edge reads version {FORMAT_VERSION}. {step}"
        )
    try:
        return _manifest_of(document)
    except ValueError as error:
        raise BundleError(f"{path} does not fit the schema: {error}. {_AGAIN}") from None


def _manifest_bytes(folder: Path, path: Path) -> bytes:
    """What the manifest's file holds, of bounded length."""
    make_one = "Make one with: varco export CHECKPOINT BUNDLE"
    if not os.path.isdir(folder):
        got = "it is a file" if os.path.exists(folder) else "there is no such folder"
        raise BundleError(f"{folder} is not a bundle: {got}. {make_one}")
    if not os.path.lexists(path):
        raise BundleError(f"{folder} is not a bundle: it holds no {MANIFEST}. {make_one}")
    with _open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path} has {size} bytes, expected at most {MAX_MANIFEST_BYTES}. {_AGAIN}")
        return _read(file, path, MAX_MANIFEST_BYTES + 1)


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    """The JSON object of a manifest, in the one spelling that a manifest has, digest included."""
    try:
        document = json.loads(raw, parse_constant=_no_constant)
        if not isinstance(document, dict) or "format_version" not in document or not _is_shallow(document, MAX_DEPTH):
            raise ValueError
    except (ValueError, RecursionError):
        raise BundleError(
            f"{path} is not a bundle manifest: it is no JSON object with a format_version. {_AGAIN}"
        ) from None
    if document["format_version"] == FORMAT_VERSION and raw != _serialise(document):
        raise BundleError(f"{path} has been altered: its digest does not match its content. {_AGAIN}")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _is_shallow(value: Any, levels: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not children or (levels > 0 and all(_is_shallow(child, levels - 1) for child in children))


def check_file(
    folder: Path,
    name: str,
    facts: FileFacts,
    remembered: Remembered,
    full: bool,
    progress: Callable[[str, int], None] | None = None,
) -> None:
    """Raise `BundleError` unless the file is a plain file of the recorded size and hash."""
    path = folder / name
    if any(parent.is_symlink() for parent in path.parents if parent != folder and folder in parent.parents):
        raise BundleError(f"{path} lies behind a symbolic link, expected a plain file. {_AGAIN}")
    with _open_plain(path) as file:
        info = os.fstat(file.fileno())
        if info.st_size != facts.size:
            raise BundleError(f"{path} has {info.st_size} bytes, expected {facts.size}. {_AGAIN}")
        large = name.endswith(LARGE_SUFFIXES)
        if large and not full and remembered.knows(path, info, facts.sha256):
            return
        digest, started_ns = hashlib.sha256(), time.time_ns()
        while block := _read(file, path, 4 << 20):
            digest.update(block)
            if progress is not None:
                progress(name, len(block))
    sha256 = digest.hexdigest()
    if sha256 != facts.sha256:
        raise BundleError(
            f"{path} has been altered: its sha256 is {sha256[:12]}…, expected {facts.sha256[:12]}…. {_AGAIN}"
        )
    if large:
        remembered.remember(path, info, facts.sha256, started_ns)


def _open_plain(path: Path) -> BinaryIO:
    """Open a plain file, without following a link and without waiting for whoever feeds a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise BundleError(f"{path} is missing. {_AGAIN}") from None
    except OSError as error:
        reason = "is a symbolic link" if path.is_symlink() else f"cannot be read ({error.strerror})"
        raise BundleError(f"{path} {reason}, expected a plain file. {_AGAIN}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{path} is a folder, pipe or device, expected a plain file. {_AGAIN}")
    return open(descriptor, "rb", buffering=0)


def _read(file: BinaryIO, path: Path, max_bytes: int) -> bytes:
    try:
        return file.read(max_bytes)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}). Check the disk, then copy the bundle again."
        ) from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `bundle.json`, the last file of a bundle. Raises `ExportError` for what `read_manifest` would refuse."""
    raw = _serialise(dataclasses.asdict(manifest))
    try:
        _manifest_of(json.loads(raw))
    except ValueError as error:
        raise ExportError(
            f"No bundle can be made of this checkpoint: {error}. Compare its config.json with the original."
        ) from None
    # A bundle that stands already (engines are added to it) has the old manifest or the new one, never a part.
    partial = folder / f".{MANIFEST}.partial"
    with open(partial, "wb", buffering=0) as file:
        file.write(raw)
        os.fsync(file.fileno())
    os.replace(partial, folder / MANIFEST)


def _serialise(document: dict[str, Any]) -> bytes:
    """The one spelling of a manifest. `digest` is the sha256 of the text without it."""
    content = {key: value for key, value in document.items() if key != "digest"}
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True)
    content["digest"] = hashlib.sha256(text.encode()).hexdigest()
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


# --- the schema -------------------------------------------------------------------------------------------------------

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
_ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


def _manifest_of(document: dict[str, Any]) -> Manifest:
    """The manifest of a parsed document. Raises `ValueError` that says what, got and expected."""
    manifest: Manifest = _from_json(Manifest, {k: v for k, v in document.items() if k != "digest"}, "")
    if len(manifest.files) > MAX_FILES:
        raise ValueError(f"it lists {len(manifest.files)} files, expected at most {MAX_FILES}")
    for name in manifest.files:
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise ValueError(f"it lists the file name {_short(name)}, expected a plain relative name")
    needed = [manifest.tokenizer, manifest.chat_template, manifest.embedding.file]
    needed += [name for part in manifest.components.values() for name in (part.file, part.data)]
    needed += [engine.file for engine in manifest.engines]
    needed += [] if manifest.probes is None else [manifest.probes]
    for name in needed:
        if name not in manifest.files:
            raise ValueError(f"it names the file {_short(name)}, expected a hash of it under files")
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
    if (embedding.rows, embedding.width) != (model.vocab_size + 1, model.hidden_size):
        yield (
            f"embedding has {embedding.rows} rows of {embedding.width}, expected {model.vocab_size + 1} of "
            f"{model.hidden_size}: vocab_size + 1 of hidden_size"
        )
    expected = embedding.rows * embedding.width * _ELEMENT_BYTES[embedding.dtype]
    if manifest.files[embedding.file].size != expected:
        yield f"{embedding.file} has {manifest.files[embedding.file].size} bytes, expected {expected} by its shape"
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
        raise ValueError(f"{where.rstrip('.') or 'it'} holds {_short(min(unknown))}, expected only known keys")
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
        return {name: _from_json(FileFacts, facts, f"{where}[{_short(name)}].") for name, facts in value.items()}
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
            raise ValueError(f"{where} is {_short(value)}, expected {low} to {high}")
        return float(value) if kind == "float" else value
    if kind == "str":
        return _text(value, where, key)
    return value


def _text(value: str, where: str, key: str) -> str:
    if not 0 < len(value) <= MAX_CHARS:
        raise ValueError(f"{where} has {len(value)} characters, expected 1 to {MAX_CHARS}")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise ValueError(f"{where} is {_short(value)}, expected one of: {', '.join(_CHOICES[key])}")
    if key == "FileFacts.sha256" and not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError(f"{where} is {_short(value)}, expected 64 hexadecimal digits")
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


def _short(value: object) -> str:
    """A hostile value as one short piece of a line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
