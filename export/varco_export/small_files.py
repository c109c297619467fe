"""The small files of a checkpoint: UTF-8 text and JSON objects of bounded size, or one line that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from varco_runtime.errors import CheckpointError

MAX_SETTINGS_BYTES = 4 << 20


def read_json(path: Path, required: bool = True, max_bytes: int = MAX_SETTINGS_BYTES) -> dict[str, Any]:
    """The JSON object in a file; an empty one when it may be missing and is. Raises `CheckpointError`."""
    if not required and not path.exists():
        return {}
    return parse_json(path, read_text(path, max_bytes))


def parse_json(path: Path, text: str) -> dict[str, Any]:
    """The JSON object `text`, read from `path`. Raises `CheckpointError`, for a key that comes twice too."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key comes twice")
        return found

    try:
        value = json.loads(text, object_pairs_hook=unique)
        if "\\ud" in text.lower():  # halves of surrogate pairs; a ValueError when one stands alone
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}), expected a JSON object. Copy it again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {str(value)[:80]!r}, expected a JSON object. Copy it again.")
    return value


def read_text(path: Path, max_bytes: int) -> str:
    """UTF-8 text. Raises `CheckpointError` where it is none or has more than `max_bytes`."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise CheckpointError(f"{path} has more than {max_bytes:,} bytes, expected at most so many. Copy it again.")
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}), expected UTF-8 text. Copy it again.") from None
