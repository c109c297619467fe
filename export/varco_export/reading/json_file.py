"""The small files of a checkpoint: UTF-8 text and JSON objects of bounded size, or one line that says what is wrong.

A checkpoint may come from anywhere, so every small file of one is read here: only plain files are (a pipe would wait
for ever and a device never end; a link counts as what it points at, for the hub's cache is made of links), never more
than their bound, and no JSON that repeats a key or nests deeper than any real one.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from varco_export.reading.regular_file import open_regular
from varco_runtime.errors import CheckpointError, one_line

MAX_SETTINGS_BYTES = 4 << 20
MAX_INDEX_BYTES = 64 << 20  # an index has a line per tensor, and a quantized checkpoint some thousands of tensors
MAX_NESTING = 32


def read_json(path: Path, required: bool = True, max_bytes: int = MAX_SETTINGS_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: The file.
        required: Whether it has to be there; an empty object stands for one that may be missing and is.
        max_bytes: What it may have at most.

    Raises:
        CheckpointError: The file is missing, no plain file, too large, or holds no JSON object.
    """
    return parse_json(path, read_text(path, max_bytes)) if required or is_there(path) else {}


def parse_json(path: Path, text: str) -> dict[str, Any]:
    """Return the JSON object `text`, read from `path`.

    Raises:
        CheckpointError: It is no JSON object, a key comes twice, or it nests too deeply.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique)
        _check_nesting(value)
        if "\\ud" in text.lower():  # halves of surrogate pairs; a ValueError when one stands alone
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = one_line(error, 200)
        raise CheckpointError(f"{path} is not JSON ({reason}), expected a JSON object. Copy it again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {str(value)[:80]!r}, expected a JSON object. Copy it again.")
    return value


def read_text(path: Path, max_bytes: int) -> str:
    """Return the UTF-8 text in a file.

    Raises:
        CheckpointError: The file is missing, no plain file, of more than `max_bytes`, or no UTF-8.
    """
    data = _read(path, max_bytes + 1)
    if len(data) > max_bytes:
        raise CheckpointError(f"{path} has more than {max_bytes:,} bytes, expected at most so many. Copy it again.")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} cannot be read ({error}), expected UTF-8 text. Copy it again.") from None


def read_head(path: Path, max_bytes: int) -> str:
    """Return up to `max_bytes` of a text for people, with "\\n" at its line ends; "" where it cannot be read."""
    try:
        return _read(path, max_bytes).decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    except CheckpointError:
        return ""


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file for reading, without waiting for whoever feeds a pipe.

    Raises:
        CheckpointError: It is missing, a link to nothing, a folder, pipe or device, or may not be read.
    """
    try:
        return open_regular(path)
    except FileNotFoundError:
        problem = f"is missing from {path.parent}"
        if path.is_symlink():
            problem = f"in {path.parent} is a link to nothing, expected a file"
        raise CheckpointError(f"{path.name} {problem}. Copy it from the checkpoint's original repository.") from None
    except OSError as error:
        is_other = error.errno in (errno.EISDIR, errno.EINVAL)
        reason = "it is a folder, pipe or device" if is_other else error.strerror or str(error)
        raise CheckpointError(f"{path} cannot be read ({reason}), expected a plain file. Copy it again.") from None


def is_there(path: Path) -> bool:
    """Return whether anything has that name, a link to nothing too, which is a broken copy and not a missing file."""
    return os.path.lexists(path)


def _read(path: Path, max_bytes: int) -> bytes:
    with open_plain(path) as file:
        try:
            return file.read(max_bytes)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}). Check the file and its disk.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {key[:80]!r} comes twice")
    return found


def _check_nesting(value: Any) -> None:
    """Raise ValueError for an object deeper than any function here would walk or print by recursion."""
    level = [value]
    for _ in range(MAX_NESTING):
        items = (item.values() if isinstance(item, dict) else item for item in level)
        level = [child for children in items for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(f"it nests more than {MAX_NESTING} deep")
