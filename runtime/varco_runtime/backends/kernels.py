"""Which kernel each node of a bundle gets, by the conditions that ONNX Runtime's providers state.

Read from the graphs, without their weights. For CUDA the conditions are those of onnxruntime's operator documentation
(`docs/contrib_ops/cuda`: matmul_nbits.md, matmul_block_scaled_fp8.md, gqa.md). `tests/provider` compares them with what
onnxruntime-gpu launches, which needs no GPU; none has run it. What a run really took is printed by
`ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO=1` and by a profile.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varco_runtime.bundle.manifest import Manifest
from varco_runtime.errors import UsageError
from varco_runtime.system.libraries import needs_extra

PLAIN = "its own kernel"
GEMV_COLUMNS = 8
GEMV_ROWS = {4: 16, 8: 5}
GEMV8_VALUES = 256
"""What a warp of the 8-bit kernel reads at once, a multiple of the block."""
FUSED_ROWS = {4: 64, 8: 32}
"""What `fpA_intB` asks of the number of output features, by bits."""
FUSED_BLOCK_SIZE = 32
FP8_ROWS = 32
"""Seen in the provider's dispatch (tests/provider); its documentation says 8."""
XQA_HEADS = (64, 128, 256)
XQA_GROUPS = (1, 2, 4, 5, 8, 16, 32)
ATTENTION_HEAD_UNIT = 8
"""Kernels that attend in one go take heads of multiples of this."""
AMPERE = (8, 0)
_PRODUCTS = ("MatMulNBits", "MatMulBlockQuantizedFp8Weight", "FusedMatMul", "MatMul")
_ATTENTION = ("Attention", "GroupQueryAttention", "MultiHeadAttention")


@dataclass(frozen=True, slots=True)
class KernelUse:
    """Nodes of one kind and shape in one network, and their kernels for one row of input and for many."""

    network: str
    operator: str
    shape: str
    nodes: int
    one_row: str
    many_rows: str


@dataclass(frozen=True, slots=True)
class _Node:
    """What of a node decides on its kernel."""

    operator: str
    shape: str
    settings: tuple[tuple[str, int], ...]
    num_inputs: int


def kernel_uses(folder: Path, manifest: Manifest, capability: tuple[int, int] | None) -> list[KernelUse]:
    """Every kind of node of a bundle's networks on a GPU of this compute capability, or on the CPU for None.

    Raises `UsageError` for a bundle of engines, whose builder chose the kernels, or `MissingExtraError`.
    """
    if manifest.device == "tensorrt":
        raise UsageError(
            "TensorRT chooses kernels when it builds an engine, so they are known for bundles for cpu and cuda "
            "alone. Look at one of those."
        )
    uses = []
    for name, component in manifest.components.items():
        for node, count in _nodes(folder / component.file).items():
            if capability is None:
                one, many = _on_cpu(node, component.compute)
            else:
                one, many = _on_cuda(node, component.compute, capability, manifest.model.vision_hidden_size)
            uses.append(KernelUse(name, node.operator, node.shape, count, one, many))
    return uses


def _nodes(path: Path) -> Counter[_Node]:
    """The nodes of a graph by what decides on their kernels, in the order of their first appearance."""
    with needs_extra("Looking into graphs", "export"):
        import onnx
    graph = onnx.load(path, load_external_data=False).graph
    dims = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return Counter(_node(node, dims) for node in graph.node)


def _node(node: Any, dims: dict[str, list[int]]) -> _Node:
    settings = {entry.name: entry.i for entry in node.attribute}
    weight = dims.get(node.input[1]) if len(node.input) > 1 else None
    shape = ""
    if node.op_type == "MatMulNBits":
        n, k, bits, block = (settings[key] for key in ("N", "K", "bits", "block_size"))
        if bits == 4 and node.input[1].endswith(".weight_int8"):
            shape = f"[{n}, {k // 2}] int8 as two runs of 4 bits, blocks of {block}"
        else:
            shape = f"[{n}, {k}] int{bits}, blocks of {block}{', zero points' if len(node.input) > 3 else ''}"
    elif node.op_type == "MatMulBlockQuantizedFp8Weight" and weight is not None:
        settings |= {"N": weight[0], "K": weight[1]}
        shape = f"[{weight[0]}, {weight[1]}] fp8"
    elif node.op_type == "FusedMatMul" and weight is not None:
        shape = f"[{weight[0]}, {weight[1]}]"
    elif node.op_type == "GroupQueryAttention":
        # The rotary table is half as wide as a head.
        settings["head_dim"] = 2 * dims[node.input[7]][1]
        heads, kv_heads = settings["num_heads"], settings["kv_num_heads"]
        shape = f"{heads} heads over {kv_heads} of {settings['head_dim']}"
    elif node.op_type == "Attention":
        shape = f"{settings['q_num_heads']} heads"
    elif node.op_type == "MultiHeadAttention":
        shape = f"{settings['num_heads']} heads"
    decides = node.op_type in (*_PRODUCTS, *_ATTENTION)
    return _Node(node.op_type, shape, tuple(sorted(settings.items())) if decides else (), len(node.input))


# --- CUDA -------------------------------------------------------------------------------------------------------------


def _on_cuda(node: _Node, compute: str, capability: tuple[int, int], vision_width: int) -> tuple[str, str]:
    """The kernels for one row, as in a decode step, and for more than 16. `vision_width` is the tower's."""
    settings = dict(node.settings)
    match node.operator:
        case "MatMulNBits":
            return _integers_on_cuda(settings, node.num_inputs > 3)
        case "MatMulBlockQuantizedFp8Weight":
            return _fp8_on_cuda(settings, capability)
        case "GroupQueryAttention":
            return _cached_attention_on_cuda(settings, capability)
        case "Attention":
            kernel = _tower_attention(vision_width // settings["q_num_heads"], capability)
            return kernel, kernel
        case "FusedMatMul" | "MatMul":
            return f"cuBLAS, {compute}", f"cuBLAS, {compute}"
    return PLAIN, PLAIN


def _integers_on_cuda(settings: dict[str, int], has_zeros: bool) -> tuple[str, str]:
    n, k, bits, block = (settings[key] for key in ("N", "K", "bits", "block_size"))
    missed = [
        reason
        for reason, holds in (
            (f"block {block}", block == FUSED_BLOCK_SIZE),
            ("zero points", not has_zeros),
            (f"N % {FUSED_ROWS[bits]}", n % FUSED_ROWS[bits] == 0),
            (f"K % {block}", k % block == 0),
        )
        if not holds
    ]
    if not missed:
        return "fpA_intB GEMV or GEMM, as profiled", "fpA_intB GEMM"
    unpacked = f"unpacked, then cuBLAS (no fpA_intB: {', '.join(missed)})"
    whole_blocks = bits == 4 or (k % block == 0 and GEMV8_VALUES % block == 0)
    if n % GEMV_COLUMNS == 0 and k % GEMV_COLUMNS == 0 and whole_blocks:
        return f"fused GEMV, up to {GEMV_ROWS[bits]} rows", unpacked
    return unpacked, unpacked


def _fp8_on_cuda(settings: dict[str, int], capability: tuple[int, int]) -> tuple[str, str]:
    k, block = settings["K"], settings["block_size"]
    many = "unpacked, then cuBLAS"
    if k % 16 or block % 16:
        return f"{many} (K or block % 16)", many
    if capability >= AMPERE and k % 64 == 0 and k >= 256 and block % 64 == 0:
        return f"FP8 GEMV on tensor cores, up to {FP8_ROWS} rows", many
    return "FP8 GEMV, up to 8 rows", many


def _cached_attention_on_cuda(settings: dict[str, int], capability: tuple[int, int]) -> tuple[str, str]:
    group, head_dim = settings["num_heads"] // settings["kv_num_heads"], settings["head_dim"]
    prompt = _prompt_attention(capability)
    if capability >= AMPERE and head_dim in XQA_HEADS and group in XQA_GROUPS:
        return f"XQA, head group of {group}", prompt
    missed = f"head size {head_dim}" if head_dim not in XQA_HEADS else f"head group of {group}"
    return f"{prompt} (no XQA: {missed})" if capability >= AMPERE else prompt, prompt


def _tower_attention(head_dim: int, capability: tuple[int, int]) -> str:
    if head_dim % ATTENTION_HEAD_UNIT:
        return f"cuBLAS products around a softmax (head size {head_dim})"
    return _prompt_attention(capability)


def _prompt_attention(capability: tuple[int, int]) -> str:
    return "Flash attention" if capability >= AMPERE else "memory-efficient attention"


# --- CPU --------------------------------------------------------------------------------------------------------------


def _on_cpu(node: _Node, compute: str) -> tuple[str, str]:
    """One kernel whatever the rows. fp16 is converted around what has no fp16 kernel, which is nearly everything."""
    settings = dict(node.settings)
    converted = "" if compute == "fp32" else f", converted from {compute}"
    match node.operator:
        case "MatMulNBits":
            inputs = "int8" if settings.get("accuracy_level") == 4 else "float"
            kernel = f"MLAS n-bit product, {inputs} inputs (level {settings.get('accuracy_level', 0)})"
        case "FusedMatMul" | "MatMul":
            kernel = f"MLAS SGEMM{converted}"
        case "MatMulBlockQuantizedFp8Weight":
            kernel = "none: there is no CPU kernel"
        case "Attention" | "GroupQueryAttention" | "MultiHeadAttention":
            kernel = f"the CPU's own attention{converted}"
        case _:
            kernel = f"{PLAIN}{converted}"
    return kernel, kernel
