"""Which kernel each node gets: the conditions, and what `varco inspect --kernels` shows of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import export_bundle
from varco_cli.app import app
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime.backends.kernels import KernelUse, _integers_on_cuda, kernel_uses
from varco_runtime.bundle.opening import read_manifest
from varco_runtime.errors import UsageError

WIDE = TinyOptions(
    seed=4,
    hidden_size=320,
    num_attention_heads=5,
    num_key_value_heads=1,
    intermediate_size=320,
    vocab_size=576,
    num_hidden_layers=1,
)
"""The 14B's head group of 5, with heads of 64, and sizes that every fast kernel takes."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("wide") / "checkpoint", WIDE)


def uses(bundle: Path, capability: tuple[int, int] | None = (9, 0)) -> dict[str, list[KernelUse]]:
    found: dict[str, list[KernelUse]] = {}
    for use in kernel_uses(bundle, read_manifest(bundle), capability):
        if use.network == "decoder":
            found.setdefault(use.operator, []).append(use)
    return found


def test_int4_takes_the_fused_kernel_and_attention_xqa(wide: Path, tmp_path: Path) -> None:
    found = uses(export_bundle(wide, tmp_path / "b", device="cuda", decoder="int4", vision="fp16", max_context=64))
    assert {use.one_row for use in found["MatMulNBits"]} == {"fpA_intB GEMV or GEMM, as profiled"}
    (attention,) = found["GroupQueryAttention"]
    assert (attention.shape, attention.one_row) == ("5 heads over 1 of 64", "XQA, head group of 5")
    assert attention.many_rows == "Flash attention"
    (head,) = found["FusedMatMul"]
    assert (head.shape, head.one_row) == ("[576, 320]", "cuBLAS, fp16")


def test_what_misses_the_fused_kernel_says_why(wide: Path, tmp_path: Path) -> None:
    options = {"device": "cuda", "decoder": "int4", "max_context": 64}
    found = uses(export_bundle(wide, tmp_path / "bf16", vision="bf16", block_size=64, **options))["MatMulNBits"]
    assert {use.one_row for use in found} == {"fused GEMV, up to 16 rows"}
    assert {use.many_rows for use in found} == {"unpacked, then cuBLAS (no fpA_intB: block 64)"}


@pytest.mark.parametrize(
    ("bits", "k", "block", "kernel"),
    [
        (4, 320, 64, "fused GEMV, up to 16 rows"),
        (4, 320, 128, "fused GEMV, up to 16 rows"),
        (8, 320, 64, "fused GEMV, up to 5 rows"),
        (8, 320, 128, "unpacked, then cuBLAS"),  # the last block is not whole
        (8, 512, 512, "unpacked, then cuBLAS"),
    ],
)
def test_eight_bits_take_fewer_rows_and_whole_blocks(bits: int, k: int, block: int, kernel: str) -> None:
    settings = {"N": 64, "K": k, "bits": bits, "block_size": block}
    assert _integers_on_cuda(settings, False)[0].startswith(kernel)


def test_fp8_takes_tensor_cores_from_ampere_on(wide: Path, tmp_path: Path) -> None:
    bundle = export_bundle(wide, tmp_path / "b", device="cuda", decoder="fp8", max_context=64)
    operator = "MatMulBlockQuantizedFp8Weight"
    assert {use.one_row for use in uses(bundle)[operator]} == {"FP8 GEMV on tensor cores, up to 32 rows"}
    assert {use.one_row for use in uses(bundle, (7, 5))[operator]} == {"FP8 GEMV, up to 8 rows"}


def test_shapes_out_of_reach_are_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_bundle(tiny_checkpoint, tmp_path / "b", device="cuda", decoder="fp16", max_context=64)
    (attention,) = uses(bundle)["GroupQueryAttention"]
    assert attention.one_row == "Flash attention (no XQA: head size 16)"
    assert attention.nodes == 2
    (attention,) = uses(bundle, (7, 5))["GroupQueryAttention"]
    assert attention.one_row == "memory-efficient attention"


def test_the_cpu_names_its_accuracy_level(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for activations, kernel in (("float", "float inputs (level 1)"), ("int8", "int8 inputs (level 4)")):
        bundle = export_bundle(tiny_checkpoint, tmp_path / activations, decoder="int4", activations=activations)
        assert {use.one_row for use in uses(bundle, None)["MatMulNBits"]} == {f"MLAS n-bit product, {kernel}"}


def test_every_node_is_counted_once(wide: Path, tmp_path: Path) -> None:
    import onnx

    bundle = export_bundle(wide, tmp_path / "b", device="cuda", decoder="int4", max_context=64)
    manifest = read_manifest(bundle)
    nodes = sum(len(onnx.load(bundle / part.file).graph.node) for part in manifest.components.values())
    assert sum(use.nodes for use in kernel_uses(bundle, manifest, (8, 0))) == nodes


def test_inspect_shows_the_kernels_and_what_they_rest_on(
    wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = export_bundle(wide, tmp_path / "b", device="cuda", decoder="int4", vision="fp16", max_context=64)
    manifest = read_manifest(bundle)
    app(["inspect", str(bundle), "--kernels"], standalone_mode=False)
    text = " ".join(capsys.readouterr().out.split())
    assert "not observed on a GPU" in text
    assert "XQA, head group of 5" in text
    app(["inspect", str(bundle), "--kernels", "--json"], standalone_mode=False)
    document = json.loads(capsys.readouterr().out)
    networks = {use["network"] for use in document["kernels"]}
    assert networks == set(manifest.components)
    assert networks == {"pixels", "vision", "projector", "packing", "decoder", "sampling"}


def test_engines_are_refused_by_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_bundle(tiny_checkpoint, tmp_path / "b", device="tensorrt", decoder="fp16", max_context=64)
    with pytest.raises(UsageError, match="TensorRT chooses kernels when it builds an engine"):
        kernel_uses(bundle, read_manifest(bundle), None)
