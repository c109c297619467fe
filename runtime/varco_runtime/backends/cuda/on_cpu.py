"""Which bundles for CUDA the CPU can run, slowly."""

from __future__ import annotations

from varco_runtime.bundle.graph_nodes import normalizes_heads
from varco_runtime.bundle.opening import Bundle


def cpu_lacks(bundle: Bundle) -> str | None:
    """Return what a bundle holds that the CPU has no kernel for, nor a conversion to one; None where it has all.

    There are none for bf16 and FP8, nor for an attention that normalizes heads itself, as Qwen3's does.
    """
    manifest = bundle.manifest
    if any(part.compute == "bf16" or "fp8" in part.precision for part in manifest.components.values()):
        return manifest.decoder.precision
    if normalizes_heads(bundle.path(manifest.decoder.file).read_bytes()):
        return "Qwen3's attention as CUDA's graphs hold it"
    return None
