"""A checkpoint's linears compressed by the compressed-tensors library itself, which llm-compressor saves with."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.makers.gptq_packer import LINEAR, write_config

torch = pytest.importorskip("torch", reason="the packer needs torch")
pytest.importorskip("compressed_tensors", reason="the packer needs compressed-tensors")

from compressed_tensors.compressors.naive_quantized.base import FloatQuantizationCompressor  # noqa: E402
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor  # noqa: E402
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32  # noqa: E402
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme  # noqa: E402
from compressed_tensors.quantization.utils import calculate_qparams  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CompressedPacking:
    """`weights` and `inputs` as compressed-tensors names them. `g_idx`: an order of input features, as older releases
    stored it. `plain`: linears whose names hold one of these words are ignored. `input_scales`: static ones by the
    linear's name on disk; arbitrary numbers where there are none."""

    weights: dict[str, Any]
    inputs: dict[str, Any] | None = None
    dtype: Any = torch.float32
    g_idx: bool = False
    lm_head: bool = False
    plain: tuple[str, ...] = ()
    input_scales: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def scheme(self) -> QuantizationScheme:
        inputs = QuantizationArgs(**self.inputs) if self.inputs else None
        return QuantizationScheme(
            targets=["Linear"], weights=QuantizationArgs(**self.weights), input_activations=inputs
        )

    @property
    def format(self) -> str:
        return "float-quantized" if self.weights.get("type") == "float" else "pack-quantized"


def compress_checkpoint(source: Path, out: Path, packing: CompressedPacking) -> dict[str, Array]:
    """Rewrite a checkpoint of one shard; returns the library's own dequantised weights by their names on disk, in fp32
    whatever the type that they were computed in."""
    shutil.copytree(source, out)
    kept: dict[str, Any] = {}
    dequantised: dict[str, Array] = {}
    ignore = ["re:.*vision_tower.*", "re:.*multi_modal_projector.*", *(f"re:.*{word}.*" for word in packing.plain)]
    ignore += [] if packing.lm_head else ["lm_head"]
    for name, weight in load_file(source / "model.safetensors").items():
        weight = weight.to(packing.dtype)
        linear = LINEAR.fullmatch(name) or (packing.lm_head and name.endswith("lm_head.weight"))
        if not linear or "vision" in name or any(word in name for word in packing.plain):
            kept[name] = weight
            continue
        scale = packing.input_scales.get(name.removesuffix(".weight"), 0.01 + 0.001 * (len(kept) % 7))
        parts, dequantised[name] = _compress(weight, packing, len(kept), scale)
        kept |= {f"{name.removesuffix('weight')}{part}": tensor.contiguous() for part, tensor in parts.items()}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    config = QuantizationConfig(
        config_groups={"group_0": packing.scheme},
        format=packing.format,
        quantization_status="compressed",
        ignore=ignore,
    )
    write_config(out, {**config.model_dump(mode="json"), **packing.extra})
    return dequantised


def _compress(weight: Any, packing: CompressedPacking, seed: int, input_scale: float) -> tuple[dict[str, Any], Array]:
    args, scheme = packing.scheme.weights, packing.scheme
    order = None
    if packing.g_idx:
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(seed))
        weight = weight[:, order]
    state = {"weight": weight, **_qparams(weight, args)}
    if packing.inputs and not packing.inputs.get("dynamic"):
        state["input_scale"] = torch.tensor([input_scale], dtype=packing.dtype)
    compressor = FloatQuantizationCompressor if packing.format == "float-quantized" else PackedQuantizationCompressor
    packed = compressor.compress(dict(state), scheme)
    restored = compressor.decompress(dict(packed), scheme)["weight"]
    assert restored.dtype == packing.dtype
    if order is not None:
        back = torch.argsort(order)
        values = unpack_from_int32(packed["weight_packed"], args.num_bits, weight.shape)
        packed["weight_packed"] = pack_to_int32(values[:, back].contiguous(), args.num_bits)
        packed["weight_g_idx"] = (back // args.group_size).to(torch.int32)
        restored = restored[:, back]
    return packed, restored.float().numpy()


def _qparams(weight: Any, args: QuantizationArgs) -> dict[str, Any]:
    """The library's scales and zero points, per group, output or tensor."""
    rows = weight.shape[0]
    if args.strategy == "group":
        spans = weight.reshape(rows, -1, args.group_size)
        low, high = spans.amin(dim=-1), spans.amax(dim=-1)
    elif args.strategy == "channel":
        low, high = weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True)
    else:
        low, high = weight.amin().reshape(1), weight.amax().reshape(1)
    scale, zero_point = calculate_qparams(low, high, args)
    scale = scale.to(weight.dtype)
    return {"weight_scale": scale} | ({} if args.symmetric else {"weight_zero_point": zero_point.to(torch.int8)})
