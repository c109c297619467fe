"""Engines of Qwen3, built by TensorRT for RTX without a GPU: its norms of heads in front of native layers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.export.engines.conftest import CONTEXT, build, export
from varco_export.engines.builder import Builder
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime.backends.tensorrt.engine_io import engine_io
from varco_runtime.bundle.opening import Bundle, read_manifest

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra dev or tensorrt)")

QWEN3 = TinyOptions(seed=1, text="qwen3", patch_size=16, hidden_size=160, num_attention_heads=10, head_dim=32)
NATIVE = ("KV_CACHE_UPDATE", "ROTARY_EMBEDDING", "ATTENTION_INPUT", "ATTENTION_OUTPUT", "MATRIX_MULTIPLY")


def decoder_layers(bundle: Path, log: Path) -> Counter[str]:
    """The decoder's layers as TensorRT parses them, by kind."""
    manifest = read_manifest(bundle)
    graph, tensors = bundle / manifest.decoder.file, engine_io(manifest, CONTEXT)["decoder"]
    return Counter(Builder.load(is_target_named=True).check(graph, tensors, 89, log))


@pytest.mark.parametrize("decoder", ["int4", "fp16"])
def test_norms_of_heads_leave_attention_caches_and_rotations_native(tmp_path: Path, decoder: str) -> None:
    """TensorRT has no layer for RMSNormalization: each is one mean of squares in fp32, its root and products."""
    twin = TinyOptions(seed=1, head_dim=32, hidden_size=160, num_attention_heads=10)
    qwen3, qwen2 = (
        decoder_layers(
            export(make_tiny(tmp_path / f"{name}-made", options), tmp_path / name, decoder), tmp_path / "log"
        )
        for name, options in (("qwen3", QWEN3), ("qwen2", twin))
    )
    assert {kind: qwen3[kind] for kind in NATIVE} == {kind: qwen2[kind] for kind in NATIVE}
    assert qwen3["KV_CACHE_UPDATE"] == qwen3["ROTARY_EMBEDDING"] == 2 * QWEN3.num_hidden_layers
    assert qwen3["REDUCE"] - qwen2["REDUCE"] == 2 * QWEN3.num_hidden_layers


@pytest.mark.parametrize(
    ("decoder", "sm"),
    [
        ("int4", 89),
        *(
            pytest.param(decoder, sm, marks=pytest.mark.full)
            for decoder, sm in (("fp16", 86), ("bf16", 89), ("int8", 120), ("fp8", 89), ("int4", 86), ("fp16", 120))
        ),
    ],
)
def test_engines_build(tmp_path: Path, decoder: str, sm: int) -> None:
    bundle = export(make_tiny(tmp_path / "made", QWEN3), tmp_path / "bundle", decoder)
    assert [report.facts.target for report in build(bundle, sm)] == [f"sm{sm}"] * 5
    Bundle.open(bundle, verify="full")
