"""A checkpoint's linears packed as auto-gptq and gptqmodel pack them, written from their documented layout.

Nothing here comes from the exporter. The loops follow auto-gptq's `QuantLinear.pack` (`qlinear_cuda_old.py`); v1's zero
points are gptqmodel's `convert_gptq_v2_to_v1_format_module`: one subtracted from each packed word. The way back is
auto-gptq's `forward`: `scales[g_idx] * (weight - zeros[g_idx])` in the type of the scales.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Array = np.ndarray[Any, Any]
LINEAR = re.compile(r"(.*\.layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj))\.weight")


@dataclass(frozen=True)
class GptqPacking:
    """How to pack. `version` 1 or 2; `act_order`: a random permutation, the same for linears with the same input.

    `apart`: q, k and v each get a permutation of their own. `plain`: linears whose names hold one of these words stay
    as they are. `overrides`: other settings for linears whose names hold a word.
    """

    bits: int = 4
    group_size: int = 32
    sym: bool = True
    version: int = 1
    act_order: bool = False
    apart: bool = False
    lm_head: bool = False
    plain: tuple[str, ...] = ()
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    zero_biases: bool = False
    seed: int = 0


def pack_checkpoint(source: Path, out: Path, packing: GptqPacking, dequantise_in: Any = np.float32) -> dict[str, Array]:
    """Rewrite a checkpoint of one fp32 shard; returns the packer's own dequantised weights by their names on disk.

    Scales are fp16. In fp32 their products with small integers are exact, in fp16 each is rounded."""
    shutil.copytree(source, out)
    tensors = load_file(source / "model.safetensors")
    kept: dict[str, Array] = {}
    dequantised: dict[str, Array] = {}
    for name, weight in tensors.items():
        found = LINEAR.fullmatch(name)
        module = found[1] if found else "lm_head" if name.endswith("lm_head.weight") and packing.lm_head else None
        if module is None or any(word in name for word in packing.plain) or "vision" in name:
            kept[name] = weight
            continue
        parts, dequantised[name] = _pack_linear(weight, name, packing, dequantise_in)
        prefix = name.removesuffix(".weight")
        kept |= {f"{prefix}.{part}": array for part, array in parts.items()}
        if packing.zero_biases and f"{prefix}.bias" not in tensors:
            kept[f"{prefix}.bias"] = np.zeros(len(weight), np.float16)
    save_file({name: np.ascontiguousarray(array) for name, array in kept.items()}, out / "model.safetensors")
    write_config(out, quantization_config(packing))
    return dequantised


def put_in(source: Path, out: Path, dequantised: dict[str, Array]) -> Path:
    """The checkpoint with dequantised weights in the place of its own, for a program that knows no quantisation."""
    shutil.copytree(source, out)
    tensors = load_file(source / "model.safetensors")
    tensors |= {name: np.ascontiguousarray(weight, np.float32) for name, weight in dequantised.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def quantization_config(packing: GptqPacking) -> dict[str, Any]:
    dynamic: dict[str, Any] = {f"-:.*{re.escape(word)}.*": {} for word in packing.plain}
    dynamic |= {f"+:.*{re.escape(word)}.*": settings for word, settings in packing.overrides.items()}
    config: dict[str, Any] = {
        "bits": packing.bits,
        "group_size": packing.group_size,
        "desc_act": packing.act_order,
        "sym": packing.sym,
        "lm_head": packing.lm_head,
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if packing.version == 1 else "gptq_v2",
    }
    return config | ({"dynamic": dynamic} if dynamic else {})


def write_config(folder: Path, quantization: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))


def _pack_linear(weight: Array, name: str, packing: GptqPacking, dtype: Any) -> tuple[dict[str, Array], Array]:
    settings = next((value for word, value in packing.overrides.items() if word in name), {})
    bits = settings.get("bits", packing.bits)
    group_size = settings.get("group_size", packing.group_size)
    num_rows, width = weight.shape
    group_size = width if group_size == -1 else group_size
    num_groups = -(-width // group_size)
    rng = np.random.default_rng([packing.seed, *_sharing(name, packing).encode()])
    g_idx = np.arange(width) // group_size
    if packing.act_order:
        g_idx = g_idx[rng.permutation(width)]
    rng = np.random.default_rng([packing.seed, *name.encode()])
    top = 2**bits - 1
    zeros = (
        np.full((num_groups, num_rows), 2 ** (bits - 1))
        if packing.sym
        else rng.integers(0, top + 1, (num_groups, num_rows))
    )
    scales = np.empty((num_groups, num_rows), np.float16)
    for group in range(num_groups):
        largest = np.abs(weight[:, g_idx == group]).max(axis=1)
        scales[group] = largest / np.maximum(zeros[group], top - zeros[group])
    values = np.round(weight.T / scales[g_idx].astype(np.float32)) + zeros[g_idx]  # [K, N]
    values = values.clip(0, top).astype(np.uint32)
    difference = (values.astype(np.int64) - zeros[g_idx]).astype(dtype)
    dequantised = (scales[g_idx].astype(dtype) * difference).T
    qzeros = _pack_columns(zeros.astype(np.uint32), bits)
    if packing.version == 1:
        qzeros = qzeros - np.uint32(sum(1 << shift for shift in range(0, 32, bits)))
    parts = {
        "qweight": _pack_rows(values, bits).view(np.int32),
        "qzeros": qzeros.view(np.int32),
        "scales": scales,
        "g_idx": g_idx.astype(np.int32),
    }
    return parts, dequantised


def _sharing(name: str, packing: GptqPacking) -> str:
    """Linears that see the same input share its order."""
    return name if packing.apart else re.sub(r"[qkv]_proj|gate_proj|up_proj", "input", name)


def _pack_rows(values: Array, bits: int) -> Array:
    """[K, N] to [K * bits / 32, N]."""
    per_word = 32 // bits
    packed = np.zeros((values.shape[0] // per_word, values.shape[1]), np.uint32)
    for row in range(len(packed)):
        for index in range(per_word):
            packed[row] |= values[row * per_word + index] << np.uint32(bits * index)
    return packed


def _pack_columns(zeros: Array, bits: int) -> Array:
    """[groups, N] to [groups, N * bits / 32]."""
    per_word = 32 // bits
    packed = np.zeros((zeros.shape[0], zeros.shape[1] // per_word), np.uint32)
    for column in range(packed.shape[1]):
        for index in range(per_word):
            packed[:, column] |= zeros[:, column * per_word + index] << np.uint32(bits * index)
    return packed
