"""Launches by the kernels that `varco inspect --kernels` speaks of, and what its words mean in launches."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tests.provider.launch_log import Launch

_FAMILIES = (
    ("XQA of {}", r"::grp(\d+)_\w+::kernel_mha"),
    ("Flash", r"onnxruntime::flash::flash_fwd_(splitkv_)?kernel<"),
    ("memory-efficient", r"attention_kernel_batched_impl"),
    ("fpA_intB GEMV", r"fpA_intB_gemv::kernel<"),
    ("fpA_intB GEMM", r"GemmFpAIntB"),
    ("n-bit GEMV", r"::MatMulFloat[48]\w*Kernel"),
    ("FP8 GEMV on tensor cores", r"::MatMulBlockScaledFp8MmaGemvKernel<"),
    ("FP8 GEMV", r"::MatMulBlockScaledFp8\w*Kernel<"),
    ("unpacking", r"::Dequantize\w+<"),
    ("cuDNN", r"cudnn"),
)
"""Names, and what the C++ names of their kernels contain. The first that fits counts."""

_CLAIMS = (
    (r"fpA_intB GEMV or GEMM", ("fpA_intB",)),
    (r"fpA_intB GEMM", ("fpA_intB GEMM",)),
    (r"FP8 GEMV on tensor cores", ("FP8 GEMV on tensor cores",)),
    (r"fused GEMV", ("n-bit GEMV",)),
    (r"unpacked, then cuBLAS", ("unpacking", "cuBLAS {}")),
    (r"cuBLAS products around a softmax", ("cuBLAS", "cuBLAS")),
    (r"cuBLAS", ("cuBLAS {}",)),
    (r"XQA, head group of (\d+)", ("XQA of {}",)),
    (r"Flash attention", ("Flash",)),
    (r"memory-efficient attention", ("memory-efficient",)),
    (r"its own kernel", ()),
)


def family(launch: Launch) -> str | None:
    """The kernel's family, or None for what moves, adds or normalises."""
    if launch.name.startswith("cublas"):
        m, _, k = launch.sizes
        return f"cuBLAS [{m}, {k}]"
    for name, pattern in _FAMILIES:
        found = re.search(pattern, launch.name)
        if found:
            return name.format(*found.groups())
    return None


def families(launches: Iterable[Launch]) -> list[str]:
    """The families of what multiplies matrices or attends, in their order."""
    return [name for name in map(family, launches) if name is not None]


def claimed(words: str, shape: str) -> list[str]:
    """The launches that a claim of `varco inspect --kernels` announces, each by the beginning of its family.

    `shape` is the node's, as the command shows it: a product's begins with `[N, K]`.
    """
    for pattern, launches in _CLAIMS:
        found = re.match(pattern, words)
        if found:
            sizes = re.match(r"\[\d+, \d+\]", shape)
            return [name.format(*found.groups(), sizes[0] if sizes else "").strip() for name in launches]
    raise ValueError(f"a claim that no test knows: {words!r}")
