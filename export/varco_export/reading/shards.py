"""The files of a checkpoint: where they are, and what the headers of their safetensors shards say.

Only headers are read, and nothing in them is trusted: sizes and offsets are checked against the file before a tensor
is known.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varco_export.reading.quoting import short, show, some
from varco_export.reading.regular_file import open_regular
from varco_export.reading.shard_files import check_no_pointer, find_shards
from varco_export.reading.tensor import SAFETENSORS_DTYPES, Dtype, Tensor
from varco_runtime.errors import CheckpointError, one_line
from varco_runtime.system.libraries import needs_extra

_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_MAX_DIMS = 8  # twice those of any weight here
_BITS = {"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "BF16": 16, "F16": 16, "I16": 16}
_BITS |= {"U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4}
_BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6}
_DOWNLOAD = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "README.md", "LICENSE*"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a shard's header, bounds checked. `dtype` is the file's word for it."""

    disk_name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    def to_tensor(self, name: str, shape: tuple[int, ...], dtypes: tuple[Dtype, ...], advice: str) -> Tensor:
        """Return the tensor of this entry. Raises CheckpointError, ending in `advice`, for another shape or dtype."""
        if self.shape != shape:
            raise CheckpointError(
                f"{short(self.disk_name)} has the shape {list(self.shape)}, expected {list(shape)}. {advice}"
            )
        dtype = SAFETENSORS_DTYPES.get(self.dtype)
        if dtype is None or dtype not in dtypes:
            expected = [word for word, known in SAFETENSORS_DTYPES.items() if known in dtypes]
            listed = " or ".join([", ".join(expected[:-1]), expected[-1]] if len(expected) > 1 else expected)
            raise CheckpointError(
                f"{short(self.disk_name)} in {self.path.name} has dtype {self.dtype}, expected {listed}. {advice}"
            )
        return Tensor(name, dtype, shape, self.path, self.offset)

    def raw_bytes(self) -> bytes:
        """Read all bytes of a small tensor of any dtype."""
        with open_regular(self.path) as file:
            file.seek(self.offset)
            return file.read(math.prod(self.shape) * _BITS[self.dtype] // 8)


def locate(source: str | Path, revision: str | None) -> tuple[Path, str | None]:
    """Find the checkpoint's folder, downloading a repository that is not in the hub's cache.

    Args:
        source: A folder, or a Hugging Face repository id.
        revision: The repository's commit, branch or tag; None for the newest, and for a folder.

    Returns:
        The local folder, and the repository id where it was one.

    Raises:
        CheckpointError: It is neither, or cannot be downloaded.
    """
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
    with needs_extra(f"Downloading {repo_id}", "export"):
        from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=_DOWNLOAD))
    except Exception as error:  # the hub's own errors, the HTTP client's and the file system's share no base
        raise CheckpointError(
            f"{repo_id} is neither a local folder nor could it be downloaded ({type(error).__name__}: "
            f"{one_line(error, 200)}). "
            "Check the name and the network, or pass the folder of a downloaded checkpoint."
        ) from None


def read_shards(folder: Path) -> dict[Path, list[Entry]]:
    """Read the headers of a checkpoint's shards, and check its index against them.

    Returns:
        The entries of each shard.

    Raises:
        CheckpointError: A shard is missing, malformed or truncated, or the index names what is not there.
    """
    paths, weight_map, index = find_shards(folder)
    shards = {path: _read_header(path) for path in paths}
    if weight_map is None:
        return shards
    held = {(entry.disk_name, path.name) for path, entries in shards.items() for entry in entries}
    absent = sorted(tensor for tensor, shard in weight_map.items() if (tensor, shard) not in held)
    if absent:
        raise CheckpointError(
            f"{some(absent)} not in {weight_map[absent[0]]}, expected there by {index}. Copy both files again."
        )
    return shards


def _read_header(path: Path) -> list[Entry]:
    """Return the tensors of one shard.

    Layout: 8 bytes little-endian header size, JSON header, tensors without gaps.
    """

    def bad(problem: str, expected: str) -> CheckpointError:
        return CheckpointError(f"{path.name} {problem}, expected {expected}. Download the shard again.")

    try:
        with open_regular(path) as file:
            file_bytes = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            check_no_pointer(path, prefix)
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
        raise bad(f"has a header that is not JSON ({one_line(error, 100)})", "a JSON object") from None
    if not isinstance(header, dict):
        raise bad("has a header that is not a JSON object", "one entry per tensor")
    header.pop("__metadata__", None)
    return _check_entries(header, path, 8 + header_bytes, file_bytes, bad)


def _check_entries(
    header: dict[str, Any], path: Path, data_start: int, file_bytes: int, bad: Callable[[str, str], CheckpointError]
) -> list[Entry]:
    spans: list[tuple[int, int, str]] = []
    entries: list[Entry] = []
    for name, info in header.items():
        match info:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]} if all(
                type(number) is int and 0 <= number < 1 << 60 for number in (*shape, start, stop)
            ):
                pass
            case _:
                raise bad(f"describes {short(name)} as {show(info)}", "dtype, shape and data_offsets")
        if len(shape) > _MAX_DIMS:
            raise bad(f"gives {short(name)} {len(shape)} dimensions", f"at most {_MAX_DIMS}")
        if dtype not in _BITS:
            raise bad(f"holds {short(name)} in the unknown dtype {short(dtype)}", "BF16, F16 or F32")
        size = math.prod(shape) * _BITS[dtype] // 8
        if stop - start != size:
            raise bad(f"gives {short(name)} {stop - start} bytes", f"{size} for {dtype} {shape}")
        if data_start + stop > file_bytes:
            raise bad(f"is truncated: {short(name)} ends at byte {data_start + stop} of {file_bytes}", "all of it")
        spans.append((start, stop, name))
        entries.append(Entry(name, dtype, tuple(shape), path, data_start + start))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise bad(f"has {short(name)} at byte {start} of its data", f"byte {end}, without overlap or gap")
        end = stop
    if data_start + end != file_bytes:
        raise bad(f"is {file_bytes} bytes long", f"{data_start + end}, the end of its last tensor")
    return entries


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{name!r} stands there twice")
            seen.add(name)
    return keys
