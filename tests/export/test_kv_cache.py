"""Keys and values kept in fp16 beside a decoder that computes in fp32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.conftest import export_bundle
from tests.makers.manifests import forge, set_at
from varco_cli.main import main
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs
from varco_runtime.backends.cpu.backend import OnnxRuntimeBackend
from varco_runtime.bundle.opening import Bundle
from varco_runtime.errors import BackendError, BundleError, UsageError

MODELS = {
    "qwen2": TinyOptions(seed=1),
    "qwen3": TinyOptions(text="qwen3", patch_size=16, seed=5, tie_word_embeddings=True),
}
IDS = np.random.default_rng(0).integers(0, 400, 40)


@pytest.fixture(scope="module", params=MODELS)
def bundles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = make_tiny(folder / "checkpoint", MODELS[request.param])
    wide = export_bundle(checkpoint, folder / "fp32", decoder="int8")
    return wide, export_bundle(checkpoint, folder / "fp16", decoder="int8", kv_cache="fp16", probes=True)


def load(folder: Path) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(Bundle.open(folder), 64, threads=1)


def test_the_cache_takes_half_and_the_logits_are_fp16s(bundles: tuple[Path, Path]) -> None:
    wide, half = (load(folder) for folder in bundles)
    facts = [Bundle.open(folder).manifest for folder in bundles]
    assert facts[0].kv_bytes_per_token == 2 * facts[1].kv_bytes_per_token
    assert sum(cache.nbytes for cache in wide._cache_arrays.values()) == 2 * sum(
        cache.nbytes for cache in half._cache_arrays.values()
    )
    assert facts[1].decoder.precision.endswith(", cache fp16")
    expected, got = (one.prefill(PromptInputs(IDS, 999, None), 0, 4) for one in (wide, half))
    error = float(np.abs(got - expected).max() / np.abs(expected).max())
    assert 0 < error < 5e-3


def test_steps_chunks_rewinding_and_copies_agree(bundles: tuple[Path, Path]) -> None:
    backend = load(bundles[1])
    whole = backend.prefill(PromptInputs(IDS, 999, None), 0).copy()
    kept = backend.copy_prefix(20)
    assert kept.dtype == np.float16
    backend.prefill(PromptInputs(IDS[::-1].copy(), 999, None), 0)
    backend.restore_prefix(kept)
    assert np.allclose(backend.prefill(PromptInputs(IDS, 999, None), 20), whole, atol=2e-2)
    backend.prefill(PromptInputs(IDS[:-1], 999, None), 0)
    assert np.allclose(backend.decode_step(int(IDS[-1]), len(IDS) - 1), whole[0], atol=2e-2)


def test_it_answers_and_passes_its_probes(bundles: tuple[Path, Path]) -> None:
    assert Varco.load(bundles[1], threads=1).ask(None, "What?", max_new_tokens=8).usage.completion_tokens
    assert main(["verify", str(bundles[1]), "--numerics"]) == 0


def test_auto_writes_what_was_written_before(bundles: tuple[Path, Path]) -> None:
    document = json.loads((bundles[0] / "bundle.json").read_text())
    assert "kv_cache" not in document
    nodes = onnx.load(bundles[0] / "decoder.onnx", load_external_data=False).graph.node
    assert sum(node.op_type == "Cast" for node in nodes) == 1  # the logits'


def test_the_type_that_the_decoder_computes_in_is_no_fact(tiny_checkpoint: Path, tmp_path: Path) -> None:
    asked = export_bundle(tiny_checkpoint, tmp_path / "asked", kv_cache="fp32")
    own = export_bundle(tiny_checkpoint, tmp_path / "own")
    assert (asked / "bundle.json").read_bytes() == (own / "bundle.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"kv_cache": "int8"}, "--kv-cache int8 cannot be exported. Expected one of: auto, fp32, fp16."),
        ({"kv_cache": "fp16", "device": "cuda"}, "--kv-cache fp16 is for --device cpu"),
        ({"kv_cache": "fp32", "decoder": "fp16"}, "--kv-cache fp32 does not go with --decoder fp16"),
    ],
)
def test_others_are_refused(tiny_checkpoint: Path, tmp_path: Path, options: dict[str, str], line: str) -> None:
    with pytest.raises(UsageError) as refusal:
        export_bundle(tiny_checkpoint, tmp_path / "bundle", **options)
    assert str(refusal.value).startswith(line)


def test_a_forged_type_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = export_bundle(tiny_checkpoint, tmp_path / "bundle")
    forge(folder, set_at("kv_cache", "bf16"))
    with pytest.raises(BundleError, match="kv_cache is bf16 for cpu, expected null, or fp32 or fp16 on a CPU"):
        Bundle.open(folder)
    forge(folder, set_at("kv_cache", "fp16"))
    with pytest.raises((BundleError, BackendError), match=r"past\.0\.key|expected .*fp16"):
        load(folder)
