"""A/B pairs: each variant differs in what it says, and a verdict needs more than the machine's drift."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

from benchmarks.gpu import pairs, variants
from benchmarks.gpu.pairs import measure_variant, verdicts
from benchmarks.gpu.stages import Setup
from benchmarks.gpu.variants import AGAIN, DEFAULT, VARIANTS, Variant, applied, unknown_entries
from tests.benchmarks.gpu.conftest import gathered
from tests.doubles.recording_onnxruntime import Gpu
from varco_export.dialects import cuda as dialect
from varco_runtime.backends.cuda import backend, cache

BY_NAME = {variant.name: variant for variant in VARIANTS}


def measured(folder: Path, variant: Variant, provider: str = "cuda", max_context: int = 2560) -> dict[str, Any]:
    setup = Setup(folder, "tiny-pairs", "int4", provider, max_context, variant.bundle, variant.export)
    return gathered(measure_variant, setup, variant)


def operators(folder: Path, variant: Variant) -> Counter[str]:
    graph = onnx.load(folder / f"tiny-pairs-{variant.bundle}" / "decoder.onnx", load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def test_a_variant_changes_constants_while_it_is_measured_and_not_longer() -> None:
    before = backend._session_entries("fp16"), cache.BANDS, dialect.LEAST_GATE_GROUP
    with applied(BY_NAME["unpacked-prefill"]):
        assert backend._session_entries("fp16") == before[0] | {"ep.cuda.fpa_intb_gemm": "0"}
    with applied(BY_NAME["one-band"]):
        assert not cache.BANDS
    with applied(BY_NAME["two-node-gate"]):
        assert dialect.LEAST_GATE_GROUP == 1 << 30
    assert (backend._session_entries("fp16"), cache.BANDS, dialect.LEAST_GATE_GROUP) == before


def test_the_session_of_a_variant_has_its_entry(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "unknown_entries", lambda variant: [])
    found = measured(tmp_path, BY_NAME["unpacked-prefill"])
    entry = gpu.sessions["decoder"].options.get_session_config_entry("ep.cuda.fpa_intb_gemm")
    assert entry == "0"
    assert set(found["ms"]) == {
        "decode at 1024",
        *(f"steps of {count} tokens at 1024" for count in (5, 9)),
        "prefill of 2.9k",
        "prefill of 7.3k",
        "vision of 10 tiles",
    }
    assert all(isinstance(ms, float) for ms in found["ms"].values()), found


@pytest.mark.full
def test_without_bands_the_caches_have_one_layout(gpu: Gpu, tmp_path: Path) -> None:
    lengths = {}
    for variant in (DEFAULT, BY_NAME["one-band"]):
        measured(tmp_path, variant)
        runs = gpu.sessions["decoder"].runs
        lengths[variant.name] = {shape[2] for run in runs for name, shape in run.items() if name.startswith("past.")}
    assert lengths == {"default": {1024, 2560}, "one-band": {2560}}


def test_bundles_of_variants_differ_in_what_they_say(tmp_path: Path) -> None:
    for variant in (DEFAULT, BY_NAME["two-node-gate"], BY_NAME["blocks-of-128"]):
        measured(tmp_path, variant, "cpu", 128)
    default, gate, blocks = (
        operators(tmp_path, one) for one in (DEFAULT, BY_NAME["two-node-gate"], BY_NAME["blocks-of-128"])
    )
    assert (default["GatedRMSNorm"], default["QuickGelu"]) == (2, 0)
    assert (gate["GatedRMSNorm"], gate["QuickGelu"]) == (0, 2)
    assert blocks == default
    graph = onnx.load(tmp_path / "tiny-pairs-blocks-of-128" / "decoder.onnx", load_external_data=False).graph
    sizes = {one.i for node in graph.node for one in node.attribute if one.name == "block_size"}
    assert sizes == {128}
    assert "no kernels for bf16" in measured(tmp_path, BY_NAME["bf16"], "cpu", 128)["does_not_apply"]


def test_variants_of_the_session_share_the_bundle_of_the_default() -> None:
    own = {variant.bundle for variant in (*VARIANTS, AGAIN) if variant.bundle != DEFAULT.name}
    assert own == {"blocks-of-128", "bf16", "two-node-gate"}
    assert AGAIN.bundle == DEFAULT.name


def test_an_option_that_the_release_does_not_know_is_said_and_nothing_is_measured(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "onnxruntime" / variants.PROVIDER_LIBRARY
    library.parent.mkdir(parents=True)
    library.write_bytes(b"..\0ep.cuda.fpa_intb_gemv_paired_k\0..")
    origin = type("Spec", (), {"origin": str(tmp_path / "onnxruntime" / "__init__.py")})()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: origin)
    assert unknown_entries(BY_NAME["paired-k"]) == []
    found = measured(tmp_path, BY_NAME["wave-aware"])
    assert found == {"does_not_apply": "this onnxruntime does not know ep.cuda.fpa_intb_gemv_wave_aware"}
    assert gpu.asked == []
    library.unlink()
    assert unknown_entries(BY_NAME["paired-k"]) == ["ep.cuda.fpa_intb_gemv_paired_k"]


def test_a_pair_is_won_by_more_than_two_runs_of_one_model_differ() -> None:
    def times(prefill: float, steps: float) -> dict[str, Any]:
        return {"ms": {"prefill of 2.9k": prefill, "steps of 5 tokens at 1024": steps}}

    found = {
        "default": times(100.0, 2.0),
        "unpacked-prefill": times(80.0, 9.0),
        "one-band": times(50.0, 2.05),
        "bf16": {"left_out": "no room"},
        "default-again": times(101.0, 2.04),
    }
    said = {line.partition(":")[0]: line for line in verdicts(found)}
    assert "prefill of 2.9k: unpacked-prefill wins, 80.000 ms against 100.000 (-20.0%" in said["unpacked-prefill"]
    assert "steps" not in said["unpacked-prefill"].partition("?")[2], "a pair is decided by what it is about"
    assert "steps of 5 tokens at 1024: no difference" in said["one-band"]
    assert said["bf16"] == "bf16: not decided, no room"
    assert set(said) == {"unpacked-prefill", "one-band", "bf16"}
    found["one-band"]["ms"]["steps of 5 tokens at 1024"] = 2.2
    assert any("the default wins" in line for line in verdicts(found))
