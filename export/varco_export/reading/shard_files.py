"""Where a checkpoint's shards are, and what a folder without any is instead.

Names that are read, the first that is there: `model.safetensors`, the shards of `model.safetensors.index.json`, and
both under auto-gptq's own name, `gptq_model-4bit-128g`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path

from varco_export.reading.json_file import MAX_INDEX_BYTES, read_json
from varco_export.reading.quoting import one_line
from varco_export.reading.regular_file import open_regular
from varco_runtime.bundle.schema import MANIFEST
from varco_runtime.errors import CheckpointError

_GPTQ = re.compile(r"(gptq_model-\d{1,2}bit-(?:-1|\d{1,7})g)\.safetensors(?:\.index\.json)?")
_SHARD = re.compile(r"[\w.-]+\.safetensors")
LFS_POINTER = b"version "
"""How a pointer begins. Neither JSON does, nor a shard, whose header would have more bytes than any disk."""
_LISTED = 10_000  # files of a folder that are looked at to say what it holds


def find_shards(folder: Path) -> tuple[list[Path], Mapping[str, str] | None, str]:
    """Find the shards of a checkpoint.

    Args:
        folder: The checkpoint.

    Returns:
        The shards, what the index says (tensor names to shard names; None for a single file), and the index's name.

    Raises:
        CheckpointError: There are none, one is missing, or the index cannot be read. The message says what the folder
            holds instead.
    """
    for base in _bases(folder):
        single, index = folder / f"{base}.safetensors", folder / f"{base}.safetensors.index.json"
        for path in (single, index):
            _check_link(path)
        if single.exists():
            return [single], None, index.name
        if index.exists():
            weight_map = _read_index(index)
            return (
                [_shard(folder, name, index.name) for name in sorted(set(weight_map.values()))],
                weight_map,
                index.name,
            )
    raise _nothing_found(folder)


def check_no_pointer(path: Path, beginning: bytes) -> None:
    """Raise CheckpointError where a file begins like what Git LFS leaves in the place of one that it did not fetch."""
    if beginning.startswith(LFS_POINTER):
        raise CheckpointError(
            f"{path.name} is a Git LFS pointer, expected the file that it stands for. Run 'git lfs pull' in "
            f"{path.parent}, or download the file."
        )


def _bases(folder: Path) -> list[str]:
    """Return what the files may be called, without the ending."""
    found = sorted({match[1] for name in _listed(folder) if (match := _GPTQ.fullmatch(name))})
    if len(found) > 1 and not any((folder / f"model.safetensors{end}").exists() for end in ("", ".index.json")):
        raise CheckpointError(
            f"{folder} holds {' and '.join(found[:2])}, expected one model. Move the others to folders of their own."
        )
    return ["model", *found]


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in itertools.islice(folder.iterdir(), _LISTED))
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be read ({error.strerror}), expected a checkpoint's folder. Check its permissions."
        ) from None


def _read_index(index: Path) -> dict[str, str]:
    try:
        with open_regular(index) as file:
            check_no_pointer(index, file.read(len(LFS_POINTER)))
    except OSError as error:
        raise CheckpointError(f"{index} cannot be read ({error.strerror}). Copy it again.") from None
    weight_map = read_json(index, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(x, str) for x in weight_map.values()):
        raise CheckpointError(f"{index} has no usable weight_map, expected tensor names to shard names. Copy it again.")
    return weight_map


def _shard(folder: Path, name: str, index: str) -> Path:
    if not _SHARD.fullmatch(name):
        raise CheckpointError(
            f"{index} names the shard {name[:80]!r}, expected a .safetensors file beside it. Copy it again."
        )
    path = folder / name
    _check_link(path)
    if not path.exists():
        raise CheckpointError(f"{name} is missing from {folder}, expected by {index}. Download the shard again.")
    return path


def _check_link(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise CheckpointError(
            f"{path} is a link to {one_line(path.readlink(), 200)}, which is not there. Copy the folder with the files "
            "that its links point to, or download the checkpoint again."
        )


def _nothing_found(folder: Path) -> CheckpointError:
    """Say what the folder holds instead of a checkpoint, and what to do about it."""
    if (folder / MANIFEST).is_file():
        return CheckpointError(
            f"{folder} is a bundle, expected what a bundle is made of: a checkpoint's folder of safetensors, or a "
            "Hugging Face repository id. Name that, or ask the bundle with varco run."
        )
    names = _listed(folder)
    what, advice = "neither", "Convert or download the checkpoint as safetensors."
    for pattern, named, next_step in _OTHERS:
        found = next((name for name in names if re.fullmatch(pattern, name)), None)
        if found is not None:
            what, advice = named.format(found[:80]), next_step
            break
    return CheckpointError(
        f"{folder} holds {what}, expected model.safetensors or model.safetensors.index.json. {advice}"
    )


# Patterns of names, most telling first: what such a folder is, and the next step.
_OTHERS = (
    (
        r"adapter_config\.json|adapter_model\.(safetensors|bin)",
        "an adapter ({}) and no model",
        "Merge it into the model that it was trained on (peft: merge_and_unload(), then save_pretrained) and export "
        "the result.",
    ),
    (
        r"consolidated.*\.(safetensors|pth|pt)",
        "weights in their trainer's own layout ({})",
        "Convert them to transformers' layout, or download that version of the checkpoint.",
    ),
    (
        r"model\.[\w-]+?(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.[\w-]+\.json",
        "a variant of the weights ({})",
        "Load it with transformers (variant=...) and save it without one, or rename a single file to "
        "model.safetensors.",
    ),
    (
        r"[\w.-]+-\d+-of-\d+\.safetensors",
        "shards ({}) without their index",
        "Download the index too.",
    ),
    (
        r".*\.safetensors",
        "{} alone",
        "Rename the file to model.safetensors if it is the whole model.",
    ),
    (r".*\.gguf", "only weights in GGUF ({})", "Download the checkpoint that it was converted from."),
    (r".*\.bin", "only PyTorch .bin files", "Convert or download the checkpoint as safetensors."),
)
