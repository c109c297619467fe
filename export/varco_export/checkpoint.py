"""Safetensors shards -> lazy tensors under canonical names, so that nothing after this file knows where a weight was.

`Checkpoint.open` reads the headers only and compares them with the configuration: a tensor that is missing, unknown, of
the wrong shape or dtype ends the export here, before a byte is written. Weights are read when asked for, large ones in
blocks of rows, with `preadv` into fresh arrays rather than mapped, so that peak resident memory is one block.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from varco_export.config import ModelConfig, TextConfig, VisionConfig, read_config, read_json
from varco_export.names import canonical_name
from varco_runtime.errors import CheckpointError, MissingExtraError

Dtype = Literal["bf16", "fp16", "fp32"]
Array = NDArray[Any]

NUMPY_DTYPES: dict[Dtype, np.dtype[Any]] = {
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp16": np.dtype(np.float16),
    "fp32": np.dtype(np.float32),
}
BLOCK_BYTES = 32 << 20

_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_DTYPES: dict[str, Dtype] = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
_BITS = {"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "BF16": 16, "F16": 16, "I16": 16}
_BITS |= {"U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4}
_BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6}
_DOWNLOAD = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "README.md", "LICENSE*"]

# Tensors that checkpoints hold and the features or logits never depend on.
_UNUSED = (
    ("vision_tower.post_layernorm.", "the features are taken before it"),
    ("vision_tower.head.", "no pooled vector is used"),
    ("vision_tower.embeddings.position_ids", "a buffer that counts up"),
)
_INV_FREQ = ".rotary_emb.inv_freq"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a shard, not read yet. `name` is canonical; `offset` counts from the start of the file."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * NUMPY_DTYPES[self.dtype].itemsize

    @property
    def num_rows(self) -> int:
        return self.shape[0] if self.shape else 1

    def read(self) -> Array:
        """All of it, in the dtype it is stored in."""
        return self.rows(0, self.num_rows).reshape(self.shape)

    def rows(self, start: int, stop: int) -> Array:
        """Rows `start` to `stop`: [stop - start, *shape[1:]]."""
        assert 0 <= start <= stop <= self.num_rows, f"Bug: rows {start}:{stop} of {self.shape}"
        array = np.empty((stop - start, *self.shape[1:]), NUMPY_DTYPES[self.dtype])
        row_bytes = self.nbytes // max(self.num_rows, 1)
        _read_exactly(self.path, self.offset + start * row_bytes, array, self.name)
        return array

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Array]:
        """Every row once, in order, in arrays of at most `max_bytes` (of one row where a row is larger)."""
        step = max(1, max_bytes * self.num_rows // max(self.nbytes, 1))
        for start in range(0, self.num_rows, step):
            yield self.rows(start, min(start + step, self.num_rows))


@dataclass(slots=True)
class Checkpoint:
    """A checkpoint whose every tensor is known, has the shape that the configuration asks for, and is used once read.

    `skipped` maps what is deliberately left out to the reason; `finish` complains about everything else not read.
    """

    folder: Path
    config: ModelConfig
    provenance: dict[str, Any]
    tensors: dict[str, Tensor]
    skipped: dict[str, str]
    _used: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, source: str | Path, revision: str | None = None) -> Checkpoint:
        """A local folder of safetensors, or a Hugging Face repo id. Raises CheckpointError, all in one line."""
        folder, repo_id = _locate(source, revision)
        shards = _read_shards(folder)
        entries = _canonical_entries([entry for held in shards.values() for entry in held])
        config = read_config(folder, {name: entry.shape for name, entry in entries.items()})
        shapes = expected_shapes(config)
        skipped = _find_skipped(entries, config, shapes)
        tensors = _checked(entries, shapes, skipped, config)
        _check_tied_head(entries, tensors, config)
        return cls(folder, config, _provenance(folder, repo_id, list(shards), config), tensors, skipped)

    @property
    def num_parameters(self) -> int:
        """Parameters of the exported network: a tied head counts once, skipped tensors not at all."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def has(self, name: str) -> bool:
        return self._resolve(name) in self.tensors

    def tensor(self, name: str) -> Tensor:
        """The tensor of a canonical name, counted as used. A tied `lm_head.weight` is the embedding table."""
        found = self.tensors.get(self._resolve(name))
        if found is None:
            raise CheckpointError(
                f"{name} is missing from {self.folder.name}. Copy the shards from the original repository."
            )
        self._used.add(found.name)
        return found

    def skip(self, prefix: str, reason: str) -> None:
        """Leave out the tensor of this name, or all whose names begin so, and remember why."""
        for name in [name for name in self.tensors if name.startswith(prefix)]:
            self.skipped[name] = reason

    def finish(self) -> None:
        """Raise CheckpointError naming every tensor that was neither used nor skipped."""
        unused = self.tensors.keys() - self._used - self.skipped.keys()
        if unused:
            raise CheckpointError(
                f"{_some(sorted(unused))} never used by the export of {self.folder.name}, expected every tensor to be. "
                "This is a fault of the exporter: please report it with the checkpoint's config.json."
            )

    def _resolve(self, name: str) -> str:
        tied = self.config.text.tie_word_embeddings and name == "lm_head.weight"
        return "language_model.embed_tokens.weight" if tied else name


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor that the network needs, in the order of its forward pass."""
    vision, text = config.vision, config.text
    shapes = _vision_shapes(vision)
    for name, columns in (("linear_1", vision.hidden_size), ("linear_2", text.hidden_size)):
        shapes[f"multi_modal_projector.{name}.weight"] = (text.hidden_size, columns)
        shapes[f"multi_modal_projector.{name}.bias"] = (text.hidden_size,)
    shapes["image_newline"] = (text.hidden_size,)
    return shapes | _text_shapes(text)


def _vision_shapes(vision: VisionConfig) -> dict[str, tuple[int, ...]]:
    width, inner = vision.hidden_size, vision.intermediate_size
    num_patches = (vision.image_size // vision.patch_size) ** 2
    embeddings = "vision_tower.embeddings"
    shapes: dict[str, tuple[int, ...]] = {
        f"{embeddings}.patch_embedding.weight": (width, 3, vision.patch_size, vision.patch_size),
        f"{embeddings}.patch_embedding.bias": (width,),
        f"{embeddings}.position_embedding.weight": (num_patches, width),
    }
    for index in range(vision.num_hidden_layers):
        layer = f"vision_tower.encoder.layers.{index}"
        for norm in ("layer_norm1", "layer_norm2"):
            shapes[f"{layer}.{norm}.weight"] = shapes[f"{layer}.{norm}.bias"] = (width,)
        linears = [(f"self_attn.{name}", width, width) for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
        for name, rows, columns in [*linears, ("mlp.fc1", inner, width), ("mlp.fc2", width, inner)]:
            shapes[f"{layer}.{name}.weight"] = (rows, columns)
            shapes[f"{layer}.{name}.bias"] = (rows,)
    return shapes


def _text_shapes(text: TextConfig) -> dict[str, tuple[int, ...]]:
    width, inner = text.hidden_size, text.intermediate_size
    queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    shapes: dict[str, tuple[int, ...]] = {"language_model.embed_tokens.weight": (text.vocab_size, width)}
    for index in range(text.num_hidden_layers):
        layer = f"language_model.layers.{index}"
        shapes[f"{layer}.input_layernorm.weight"] = (width,)
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            shapes[f"{layer}.self_attn.{name}.weight"] = (rows, width)
            shapes[f"{layer}.self_attn.{name}.bias"] = (rows,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (width, queries)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (width,)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (inner, width)
        shapes[f"{layer}.mlp.up_proj.weight"] = (inner, width)
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, inner)
    shapes["language_model.norm.weight"] = (width,)
    if not text.tie_word_embeddings:
        shapes["lm_head.weight"] = (text.vocab_size, width)
    return shapes


# --- the files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of a shard's header, bounds checked. `dtype` is the file's word for it."""

    disk_name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int


def _locate(source: str | Path, revision: str | None) -> tuple[Path, str | None]:
    """The local folder, and the repo id where it was one."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"{source} is a folder and has no revision {revision!r}, expected none. Leave it out."
            )
        return folder, None
    if isinstance(source, Path) or folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise CheckpointError(
            f"{source} is not a folder, expected a checkpoint's folder or a Hugging Face repo id such as "
            "NCSOFT/VARCO-VISION-14B-HF. Check the path."
        )
    return _download(source, revision), source


def _download(repo_id: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError(f"Downloading {repo_id}", "export") from None
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=_DOWNLOAD))
    except Exception as error:  # the hub's own errors, the HTTP client's and the file system's share no base
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{repo_id} is neither a local folder nor could it be downloaded ({type(error).__name__}: {reason}). "
            "Check the name and the network, or pass the folder of a downloaded checkpoint."
        ) from None


def _read_shards(folder: Path) -> dict[Path, list[_Entry]]:
    """model.safetensors, or the shards that its index names, each inside the folder. Checks the index against them."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return {single: _read_header(single)}
    if not index.exists():
        found = "only PyTorch .bin files" if any(folder.glob("*.bin")) else "neither"
        raise CheckpointError(
            f"{folder} holds {found}, expected model.safetensors or model.safetensors.index.json. Convert or "
            "download the checkpoint as safetensors."
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(x, str) for x in weight_map.values()):
        raise CheckpointError(f"{index} has no usable weight_map, expected tensor names to shard names. Copy it again.")
    names = sorted(set(weight_map.values()))
    for name in names:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise CheckpointError(
                f"{index.name} names the shard {name[:80]!r}, expected a .safetensors file beside it. Copy it again."
            )
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{name} is missing from {folder}, expected by {index.name}. Download the shard again."
            )
    shards = {folder / name: _read_header(folder / name) for name in names}
    held = {(entry.disk_name, path.name) for path, entries in shards.items() for entry in entries}
    absent = sorted(tensor for tensor, shard in weight_map.items() if (tensor, shard) not in held)
    if absent:
        raise CheckpointError(
            f"{_some(absent)} not in {weight_map[absent[0]]}, expected there by {index.name}. Copy both files again."
        )
    return shards


def _read_header(path: Path) -> list[_Entry]:
    """The tensors of one shard. Layout: 8 bytes little-endian header size, JSON header, tensors without gaps."""

    def bad(problem: str, expected: str) -> CheckpointError:
        return CheckpointError(f"{path.name} {problem}, expected {expected}. Download the shard again.")

    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            header_bytes = int.from_bytes(prefix, "little")
            if len(prefix) < 8:
                raise bad(f"is {file_bytes} bytes long", "a safetensors file")
            if header_bytes > _MAX_HEADER_BYTES:
                raise bad(f"claims a header of {header_bytes} bytes", f"at most {_MAX_HEADER_BYTES}")
            if 8 + header_bytes > file_bytes:
                raise bad(f"is truncated inside its header at {file_bytes} bytes", f"{8 + header_bytes} or more")
            text = file.read(header_bytes)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}). Check the file and its permissions."
        ) from None
    try:
        header = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise bad(f"has a header that is not JSON ({' '.join(str(error).split())[:100]})", "a JSON object") from None
    if not isinstance(header, dict):
        raise bad("has a header that is not a JSON object", "one entry per tensor")
    header.pop("__metadata__", None)
    return _check_entries(header, path, 8 + header_bytes, file_bytes, bad)


def _check_entries(
    header: dict[str, Any], path: Path, data_start: int, file_bytes: int, bad: Callable[[str, str], CheckpointError]
) -> list[_Entry]:
    spans: list[tuple[int, int, str]] = []
    entries: list[_Entry] = []
    for name, info in header.items():
        match info:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]} if all(
                type(number) is int and 0 <= number < 1 << 60 for number in (*shape, start, stop)
            ):
                pass
            case _:
                raise bad(f"describes {_short(name)} as {_short(str(info))}", "dtype, shape and data_offsets")
        if dtype not in _BITS:
            raise bad(f"holds {_short(name)} in the unknown dtype {_short(dtype)}", "BF16, F16 or F32")
        size = math.prod(shape) * _BITS[dtype] // 8
        if stop - start != size:
            raise bad(f"gives {_short(name)} {stop - start} bytes", f"{size} for {dtype} {shape}")
        if data_start + stop > file_bytes:
            raise bad(f"is truncated: {_short(name)} ends at byte {data_start + stop} of {file_bytes}", "all of it")
        spans.append((start, stop, name))
        entries.append(_Entry(name, dtype, tuple(shape), path, data_start + start))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise bad(f"has {_short(name)} at byte {start} of its data", f"byte {end}, without overlap or gap")
        end = stop
    if data_start + end != file_bytes:
        raise bad(f"is {file_bytes} bytes long", f"{data_start + end}, the end of its last tensor")
    return entries


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return keys


def _read_exactly(path: Path, offset: int, array: Array, name: str) -> None:
    view = array.reshape(-1).view(np.uint8).data
    done = 0
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            while done < len(view):
                count = os.preadv(descriptor, [view[done : done + (1 << 30)]], offset + done)
                if count == 0:
                    break
                done += count
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}). Check the file and its disk.") from None
    if done < len(view):
        raise CheckpointError(
            f"{path.name} was truncated while {name} was read, expected {len(view) - done} more bytes. Copy it again."
        )


# --- names, shapes and what is left out -------------------------------------------------------------------------------


def _canonical_entries(found: list[_Entry]) -> dict[str, _Entry]:
    """Entries by canonical name; unknown prefixes keep their own name and are refused later, with the shapes."""
    entries: dict[str, _Entry] = {}
    for entry in found:
        name = canonical_name(entry.disk_name) or entry.disk_name
        if name in entries:
            other = entries[name]
            raise CheckpointError(
                f"{_short(entry.disk_name)} in {entry.path.name} and {_short(other.disk_name)} in {other.path.name} "
                "are the same tensor, expected it once. Remove one of them."
            )
        entries[name] = entry
    return entries


def _find_skipped(
    entries: dict[str, _Entry], config: ModelConfig, shapes: dict[str, tuple[int, ...]]
) -> dict[str, str]:
    skipped: dict[str, str] = {}
    dropped = _dropped_layer_prefixes(config)
    for name in entries.keys() - shapes.keys():
        for prefix, reason in (*_UNUSED, *((prefix, "a dropped layer") for prefix in dropped)):
            if name.startswith(prefix):
                skipped[name] = reason
        if name.endswith(_INV_FREQ):
            skipped[name] = "computed from rope_theta"
        if name == "lm_head.weight" and config.text.tie_word_embeddings:
            skipped[name] = "tied to the embedding table"
    return skipped


def _dropped_layer_prefixes(config: ModelConfig) -> list[str]:
    """Vision layers that a checkpoint may hold and that never run."""
    run = config.vision.num_hidden_layers
    return [f"vision_tower.encoder.layers.{run + index}." for index in range(config.num_dropped_vision_layers)]


def _checked(
    entries: dict[str, _Entry], shapes: dict[str, tuple[int, ...]], skipped: dict[str, str], config: ModelConfig
) -> dict[str, Tensor]:
    """The tensors that the network needs. Raises CheckpointError naming all that are missing, unknown or odd."""
    missing = [name for name in shapes if name not in entries]
    if missing == ["lm_head.weight"]:
        raise CheckpointError(
            "lm_head.weight is missing and tie_word_embeddings is false, expected an output head. Copy the shards "
            "again, or set tie_word_embeddings to true in config.json if the model was trained so."
        )
    if missing:
        raise CheckpointError(
            f"{_some(missing)} missing from the weights, expected by config.json. Copy the shards from the original "
            "repository."
        )
    unknown = sorted(entries[name].disk_name for name in entries.keys() - shapes.keys() - skipped.keys())
    if unknown:
        raise CheckpointError(
            f"{_some(unknown)} unknown, expected only the tensors that config.json describes. Compare config.json with "
            "the original repository; another architecture cannot be exported."
        )
    tensors: dict[str, Tensor] = {}
    wrong = [f"{entries[name].disk_name} {list(entries[name].shape)}, expected {list(shape)}"
             for name, shape in shapes.items() if entries[name].shape != shape]  # fmt: skip
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"wrong shape: {wrong[0]} by config.json{more}. Compare config.json with the original repository."
        )
    for name, shape in shapes.items():
        entry = entries[name]
        if entry.dtype not in _DTYPES:
            raise CheckpointError(
                f"{entry.disk_name} in {entry.path.name} has dtype {entry.dtype}, expected BF16, F16 or F32. Export "
                "the checkpoint that it was made from."
            )
        tensors[name] = Tensor(name, _DTYPES[entry.dtype], shape, entry.path, entry.offset)
    return tensors


def _check_tied_head(entries: dict[str, _Entry], tensors: dict[str, Tensor], config: ModelConfig) -> None:
    """A head on disk beside `tie_word_embeddings` must equal the embedding: transformers 4 drops it, 5 would use it."""
    head = entries.get("lm_head.weight")
    if head is None or not config.text.tie_word_embeddings:
        return
    table = tensors["language_model.embed_tokens.weight"]
    same = _DTYPES.get(head.dtype) == table.dtype and head.shape == table.shape
    if same:
        copy = Tensor("lm_head.weight", table.dtype, table.shape, head.path, head.offset)
        blocks = zip(copy.blocks(4 << 20), table.blocks(4 << 20), strict=True)
        same = all(bool(np.array_equal(left.view(np.uint8), right.view(np.uint8))) for left, right in blocks)
    if not same:
        raise CheckpointError(
            f"{head.disk_name} differs from the embedding table and config.json says tie_word_embeddings, expected one "
            "or the other. Set tie_word_embeddings to false if the head is a trained one, else remove it."
        )


# --- provenance -------------------------------------------------------------------------------------------------------


def _provenance(folder: Path, repo_id: str | None, shards: list[Path], config: ModelConfig) -> dict[str, Any]:
    source = repo_id or folder.resolve().name
    return {
        "source": source,
        "revision": folder.name if repo_id else None,  # the hub's cache names a snapshot's folder by its commit
        "format": config.family,
        "shards": [{"name": shard.name, "size": shard.stat().st_size} for shard in shards],
        "license": find_license(folder, source),
        "notes": list(config.notes),
    }


def find_license(folder: Path, source: str) -> str:
    """The licence as README.md's front matter names it, as its LICENSE file reads, or "unknown"."""
    front = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---", _head(folder / "README.md"), re.DOTALL)
    if front:
        for key in ("license_name", "license"):
            stated = re.search(rf"^{key}:[ \t]*(?:\r?\n[ \t]*-[ \t]*)?[\"']?([\w.+-]+)", front[1], re.MULTILINE)
            if stated and stated[1] != "other":
                return stated[1].lower()
    for path in sorted(folder.glob("LICENSE*")):
        text = f"{path.name} {_head(path)[:2000]}".lower().replace("-", " ")
        for words, name in _LICENSE_WORDS:
            if words in text:
                return name
    return "cc-by-nc-4.0" if "varco-vision" in source.lower() else "unknown"


_LICENSE_WORDS = (
    ("attribution noncommercial 4.0", "cc-by-nc-4.0"),
    ("cc by nc 4.0", "cc-by-nc-4.0"),
    ("apache license", "apache-2.0"),
    ("mit license", "mit"),
    ("tongyi qianwen", "tongyi-qianwen"),
)


def _head(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""


def _some(names: list[str]) -> str:
    """The first name, how many follow, and the verb: "a is", "a and 3 more are"."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{_short(names[0])}{more} {'are' if more else 'is'}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 120 else text[:117] + "..."
