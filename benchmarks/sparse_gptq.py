"""A sparse checkpoint of plain weights, made one of GPTQ weights of the same shapes: 4 bits, asymmetric, act-order.

`qweight` and `scales` stay holes in the file, which take no disk; `qzeros` and `g_idx` are real, small, and the worst
case of what an export has to do: zero points and a random order of input features for every linear.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

BITS, GROUP_SIZE = 4, 128
_LINEAR = re.compile(r"(.*layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj))\.weight")
_ITEM_BYTES = {"I32": 4, "F16": 2, "BF16": 2}


def make_gptq(folder: Path) -> None:
    """Rewrite the only shard of `folder`, and its config.json."""
    path = folder / "model.safetensors"
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors: list[tuple[str, str, list[int], bytes]] = []
    for name, info in header.items():
        linear = _LINEAR.fullmatch(name)
        if name == "__metadata__":
            continue
        if linear is None or "vision" in name:
            tensors.append((name, info["dtype"], info["shape"], b""))
        else:
            tensors += _packed(linear[1], *info["shape"])
    _write(path, tensors)
    config = folder / "config.json"
    settings = {"bits": BITS, "group_size": GROUP_SIZE, "desc_act": True, "sym": False, "quant_method": "gptq"}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": settings}))


def _packed(module: str, num_rows: int, width: int) -> list[tuple[str, str, list[int], bytes]]:
    """Name, dtype, shape and content of a linear's tensors; no content is a hole."""
    rng = np.random.default_rng(list(module.encode()))
    num_groups = width // GROUP_SIZE
    zeros = rng.integers(0, 1 << 32, (num_groups, num_rows * BITS // 32), dtype=np.uint32)
    g_idx = rng.permutation(np.arange(width, dtype=np.int32) // GROUP_SIZE)
    return [
        (f"{module}.qweight", "I32", [width * BITS // 32, num_rows], b""),
        (f"{module}.qzeros", "I32", list(zeros.shape), zeros.tobytes()),
        (f"{module}.scales", "F16", [num_groups, num_rows], b""),
        (f"{module}.g_idx", "I32", [width], g_idx.tobytes()),
    ]


def _write(path: Path, tensors: list[tuple[str, str, list[int], bytes]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape, _ in tensors:
        start, end = end, end + math.prod(shape) * _ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, _, _, content in tensors:
            if content:
                file.seek(8 + len(text) + header[name]["data_offsets"][0])
                file.write(content)
        file.truncate(8 + len(text) + end)
