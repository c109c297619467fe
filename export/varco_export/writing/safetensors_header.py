"""The header of a safetensors shard that is about to be written.

Layout: 8 bytes little-endian header size, JSON header padded to 8 bytes, tensors without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def make_header(tensors: Mapping[str, tuple[str, tuple[int, ...], int]]) -> bytes:
    """Return everything that stands in front of the first tensor of a shard.

    Args:
        tensors: By name on disk, in the order in which they are written: safetensors' name of the number format, the
            shape, and the size in bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, num_bytes) in tensors.items():
        start, end = end, end + num_bytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
