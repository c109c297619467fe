"""The bundle: its one schema, and the checks before anything in it is used.

    bundle/
      bundle.json          the manifest below; its last field is a digest of the rest
      tokenizer.json  chat_template.jinja
      vision.onnx  projector.onnx  decoder.onnx  *.onnx.data
      embedding.bin        rows [vocab_size + 1, hidden] in the checkpoint's type; the last row is image_newline

The exporter fills a `Manifest` and calls `write_manifest`; the runtime calls `Bundle.open`. A bundle is not trusted: the manifest is
bounded before it is parsed, every other file must be a plain file of the recorded size and sha256, and only then does a
library see it. Small files are hashed at every opening, large ones when path, size, time or inode are new (`verified.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varco_runtime.errors import BundleError
from varco_runtime.settings import GenerationSettings, ImageSettings, PromptSettings
from varco_runtime.verified import Remembered

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
MAX_MANIFEST_BYTES = 4 << 20
MAX_FILES = 256
LARGE_SUFFIXES = (".data", ".bin")
"""Files hashed once and then remembered; everything else is hashed at every opening."""

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}){0,3}")


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What every file must be."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Component:
    """One network: its graph file, its data file, the types it works in, and what it weighs.

    `compute` is the element type of its inputs and outputs ("fp32" or "fp16"), `precision` a description for people.
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
    embedding: Embedding
    tokenizer: str
    chat_template: str
    license: str
    provenance: dict[str, Any]
    files: dict[str, FileFacts]

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one position occupies in all layers."""
        model = self.model
        element = 2 if self.decoder.compute == "fp16" else 4
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
    """Parse `bundle.json`, which must be byte for byte what `write_manifest` writes."""
    path = folder / MANIFEST
    again = "Export the bundle again."
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a bundle: there is no such folder. Make one with: varco export CHECKPOINT {folder}")
    try:
        info = path.lstat()
        if not stat.S_ISREG(info.st_mode):
            raise BundleError(f"{path} is not a plain file. {again}")
        if info.st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path} has {info.st_size} bytes, expected at most {MAX_MANIFEST_BYTES}. {again}")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise BundleError(
            f"{folder} is not a bundle: it holds no {MANIFEST}. Make one with: varco export CHECKPOINT BUNDLE"
        ) from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from None
    try:
        document = json.loads(raw)
        if not isinstance(document, dict):
            raise ValueError("not an object")
        version = document["format_version"]
    except (ValueError, KeyError, RecursionError):
        raise BundleError(f"{path} is not a bundle manifest: it is no JSON object with a format_version. {again}") from None
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        step = "Upgrade varco-edge, or export the bundle again." if newer else again
        raise BundleError(f"{path} has format version {version!r}, this varco-edge reads version {FORMAT_VERSION}. {step}")
    if raw != _serialise(document):
        raise BundleError(f"{path} has been altered: its digest does not match its content. {again}")
    try:
        manifest: Manifest = _from_json(Manifest, {k: v for k, v in document.items() if k != "digest"}, "")
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} does not fit the schema: {error}. {again}") from None
    _check_files(manifest, path)
    return manifest


def _check_files(manifest: Manifest, path: Path) -> None:
    if len(manifest.files) > MAX_FILES:
        raise BundleError(f"{path} lists {len(manifest.files)} files, expected at most {MAX_FILES}. Export the bundle again.")
    for name in manifest.files:
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise BundleError(f"{path} lists the file name {name!r}, expected a plain relative name. Do not use this bundle.")
    components = (manifest.vision, manifest.projector, manifest.decoder)
    needed = [manifest.tokenizer, manifest.chat_template, manifest.embedding.file]
    needed += [name for component in components for name in (component.file, component.data)]
    for name in needed:
        if name not in manifest.files:
            raise BundleError(f"{path} names the file {name!r} but records no hash of it. Export the bundle again.")


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
    again = "Copy or export the bundle again."
    try:
        if any(parent.is_symlink() for parent in path.parents if parent != folder and folder in parent.parents):
            raise BundleError(f"{path} lies behind a symbolic link, expected a plain file. {again}")
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise BundleError(f"{path} is missing. {again}") from None
    except OSError as error:
        reason = "is a symbolic link" if path.is_symlink() else f"cannot be read ({error.strerror})"
        raise BundleError(f"{path} {reason}, expected a plain file. {again}") from None
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise BundleError(f"{path} is not a plain file. {again}")
        if info.st_size != facts.size:
            raise BundleError(f"{path} has {info.st_size} bytes, expected {facts.size}. {again}")
        large = name.endswith(LARGE_SUFFIXES)
        if large and not full and remembered.knows(path, info, facts.sha256):
            return
        digest = hashlib.sha256()
        while block := file.read(4 << 20):
            digest.update(block)
            if progress is not None:
                progress(name, len(block))
    if digest.hexdigest() != facts.sha256:
        raise BundleError(f"{path} has been altered: its sha256 is {digest.hexdigest()[:12]}…, expected {facts.sha256[:12]}…. {again}")
    if large:
        remembered.remember(path, info, facts.sha256)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `bundle.json`, the last file of a bundle."""
    (folder / MANIFEST).write_bytes(_serialise(dataclasses.asdict(manifest)))


def _serialise(document: dict[str, Any]) -> bytes:
    """The one spelling of a manifest. `digest` is the sha256 of the text without it."""
    content = {key: value for key, value in document.items() if key != "digest"}
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True)
    content["digest"] = hashlib.sha256(text.encode()).hexdigest()
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


_NESTED: dict[str, type] = {
    "ModelFacts": ModelFacts,
    "ImageSettings": ImageSettings,
    "PromptSettings": PromptSettings,
    "GenerationSettings": GenerationSettings,
    "Component": Component,
    "Embedding": Embedding,
}


def _from_json(cls: type, value: object, where: str) -> Any:
    """A dataclass from parsed JSON: every field present, none unknown, every type right."""
    if not isinstance(value, dict):
        raise TypeError(f"{where or 'the manifest'} is {type(value).__name__}, expected an object")
    fields = {field.name: str(field.type) for field in dataclasses.fields(cls)}
    for name in fields:
        if name not in value:
            raise KeyError(f"{where}{name} is missing")
    if unknown := set(value) - set(fields):
        raise KeyError(f"{where}{min(unknown)} is unknown")
    return cls(**{name: _convert(kind, value[name], f"{where}{name}") for name, kind in fields.items()})


def _convert(kind: str, value: Any, where: str) -> Any:
    """`value` as the field type `kind` (the annotation's text) says."""
    if kind in _NESTED:
        return _from_json(_NESTED[kind], value, f"{where}.")
    if kind == "dict[str, FileFacts]":
        if not isinstance(value, dict):
            raise TypeError(f"{where} is not an object")
        return {name: _from_json(FileFacts, facts, f"{where}.{name}.") for name, facts in value.items()}
    if kind.endswith(" | None"):
        return None if value is None else _convert(kind.removesuffix(" | None"), value, where)
    if kind.startswith("tuple["):
        if not isinstance(value, list):
            raise TypeError(f"{where} is {type(value).__name__}, expected a list")
        return tuple(_convert_item(kind, item, where) for item in value)
    plain = {"int": int, "str": str, "float": (int, float), "bool": bool, "dict[str, Any]": dict}
    expected = plain[kind]
    if not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool"):
        raise TypeError(f"{where} is {type(value).__name__}, expected {kind}")
    if kind == "int" and where != "prompt.image_token_id" and value < 0:
        raise ValueError(f"{where} is {value}, expected no negative number")
    return float(value) if kind == "float" else value


def _convert_item(kind: str, item: Any, where: str) -> Any:
    """One entry of a tuple: `tuple[int, ...]`, `tuple[float, float, float]`, `tuple[tuple[int, int], ...]`, ..."""
    inner = kind[len("tuple[") : -1]
    if inner.startswith("tuple["):
        inner = inner[: inner.index("]") + 1]
        if not isinstance(item, list) or len(item) != 2:
            raise TypeError(f"{where} holds {item!r}, expected pairs")
        first, second = inner[len("tuple[") : -1].split(", ")
        return (_convert(first, item[0], where), _convert(second, item[1], where))
    return _convert(inner.split(", ")[0], item, where)
