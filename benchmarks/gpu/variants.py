"""Variants of the CUDA path that differ in one thing, for A/B pairs; nothing here is an option of the product.

A variant changes constants of this process alone, so each is measured in a process of its own.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from varco_export.dialects import cuda as dialect
from varco_runtime.backends.cuda import backend, cache

PROVIDER_LIBRARY = "capi/libonnxruntime_providers_cuda.so"


@dataclass(frozen=True, slots=True)
class Variant:
    """What a model differs in from the default.

    `question` is what the pair decides, `compared` the figures that decide it, by the beginnings of their places.
    `entries` are settings of the session, `environment` variables that onnxruntime reads, `export` options of the
    export, `bands` the caches' and `least_gate_group` the dialect's constants of these names; None leaves them.
    """

    name: str
    question: str = ""
    compared: tuple[str, ...] = ()
    entries: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    export: tuple[tuple[str, object], ...] = ()
    bands: tuple[int, ...] | None = None
    least_gate_group: int | None = None

    @property
    def bundle(self) -> str:
        """Return what its bundle is called: the default's where only the session differs."""
        return self.name if self.export or self.least_gate_group is not None else DEFAULT.name


DEFAULT = Variant("default")
VARIANTS = (
    DEFAULT,
    Variant(
        "unpacked-prefill",
        "are integers unpacked for cuBLAS faster in prompts than the fused kernel",
        ("prefill",),
        entries=(("ep.cuda.fpa_intb_gemm", "0"),),
    ),
    Variant("one-band", "do bands of the caches make drafts faster", ("steps",), bands=()),
    Variant(
        "blocks-of-128",
        "are blocks of 128 faster than of 32",
        ("decode", "steps", "prefill"),
        export=(("block_size", 128),),
    ),
    Variant("bf16", "what does bf16 cost beside fp16", ("decode", "prefill", "vision"), export=(("vision", "bf16"),)),
    Variant(
        "two-node-gate",
        "is the gate in two nodes slower than GatedRMSNorm",
        ("decode", "prefill"),
        least_gate_group=1 << 30,
    ),
    Variant(
        "paired-k", "does the paired GEMV help", ("decode", "steps"), entries=(("ep.cuda.fpa_intb_gemv_paired_k", "1"),)
    ),
    Variant(
        "wave-aware",
        "does the wave-aware GEMV help",
        ("decode", "steps"),
        entries=(("ep.cuda.fpa_intb_gemv_wave_aware", "1"),),
    ),
    Variant(
        "chunks-of-1024",
        "do chunks of rows help prompts",
        ("prefill",),
        entries=(("ep.cuda.matmul_nbits_m_chunk_size", "1024"),),
        environment=(("ORT_MATMULNBITS_FORCE_CHUNKED", "1"),),  # else from 256 MB of a product's ends on alone
    ),
)
AGAIN = Variant("default-again", "how far are two runs of one model apart")
"""Measured last: what the machine's own drift makes of equal models."""


@contextmanager
def applied(variant: Variant) -> Iterator[None]:
    """Change this process's constants to a variant's while the block runs."""
    with ExitStack() as changes:
        if variant.entries:
            entries = _with(backend._session_entries, dict(variant.entries))
            changes.enter_context(mock.patch.object(backend, "_session_entries", entries))
        changes.enter_context(mock.patch.dict(os.environ, dict(variant.environment)))
        if variant.bands is not None:
            changes.enter_context(mock.patch.object(cache, "BANDS", variant.bands))
        if variant.least_gate_group is not None:
            changes.enter_context(mock.patch.object(dialect, "LEAST_GATE_GROUP", variant.least_gate_group))
        yield


def unknown_entries(variant: Variant) -> list[str]:
    """Return settings that the installed provider does not know: their names are not in its library.

    onnxruntime ignores a setting of the session that it does not know, without a word.
    """
    if not variant.entries:
        return []
    found = importlib.util.find_spec("onnxruntime")
    library = Path(str(found.origin)).parent / PROVIDER_LIBRARY if found is not None else None
    if library is None or not library.is_file():
        return [name for name, _ in variant.entries]
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return [name for name, _ in variant.entries if content.find(name.encode() + b"\0") < 0]


def _with(settings: Callable[[str], dict[str, str]], more: dict[str, str]) -> Callable[[str], dict[str, str]]:
    return lambda compute: settings(compute) | more
