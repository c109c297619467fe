"""Shards of safetensors whose headers say something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def change_header(path: Path, change: Callable[[dict[str, Any]], None], more_data: bytes = b"") -> None:
    """Rewrite a shard's header as `change` leaves it, and its data as it was, with `more_data` behind."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    write_header(path, json.dumps(header).encode(), content[8 + size :] + more_data)


def write_header(path: Path, header: bytes, data: bytes = b"") -> None:
    """Write a shard with a header of these bytes, whatever they are."""
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def add_tensor(header: dict[str, Any], name: str, shape: list[int], dtype: str = "F32") -> None:
    """Put one more tensor behind the last; its bytes go into `more_data`."""
    end = max(info["data_offsets"][1] for key, info in header.items() if key != "__metadata__")
    size = int(np.prod(shape)) * {"F32": 4, "I64": 8}[dtype]
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
