"""Random models of real sizes: shared weights, what they take, and their measurement."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import report as report_file
from benchmarks.gpu.limits import prefill_operations, vision_operations
from benchmarks.gpu.model import RandomGraph, bundle_bytes, loaded_bytes, make_bundle, model_options, shared_bytes
from benchmarks.gpu.stages import Setup, measure_model
from tests.benchmarks.gpu.conftest import gathered
from tests.doubles.recording_onnxruntime import Gpu
from varco_runtime import Varco
from varco_runtime.backend import MAX_STEP_TOKENS, PromptInputs
from varco_runtime.bundle.opening import read_manifest


def test_operations_are_those_of_the_weights(tmp_path: Path) -> None:
    """Two for each weight and row, and two bytes hold a weight: bytes and operations of one row are alike."""
    manifest, options = read_manifest(make_bundle(tmp_path, "tiny", "fp16", 128)), model_options("tiny")
    assert prefill_operations(options, 1) == pytest.approx(manifest.decoder.weight_bytes, rel=0.02)
    patches, width = manifest.image.patches_per_tile, options.vision_hidden_size
    attention = options.num_vision_layers * 4 * patches**2 * width
    rows = patches * (manifest.vision.weight_bytes + manifest.projector.weight_bytes)
    assert vision_operations(options, 3) == pytest.approx(3 * (rows + attention), rel=0.03)


def test_it_needs_no_package_beyond_the_extras_cuda_and_export(tmp_path: Path) -> None:
    blocked = ["torch", "transformers", "safetensors", "psutil", "pytest", "llmcompressor", "cuda", "tensorrt"]
    code = f"""
import sys, pathlib
sys.modules.update(dict.fromkeys({blocked}))
from benchmarks.gpu.limits import measure_limits
from benchmarks.gpu.profile import profile_operators
from benchmarks.gpu.stages import Setup, measure_model
setup = Setup(pathlib.Path({str(tmp_path)!r}), "tiny", "int4", "cpu", 128)
measure_limits("cpu", True, print)
measure_model(setup, False, print)
profile_operators(setup, print)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run([sys.executable, "-c", code], check=True, env=environment, text=True, capture_output=True)
    assert "left_out" not in told.stdout
    assert "loop_overhead_ms" in told.stdout


def test_a_model_on_a_gpu_is_measured_as_it_is_used(gpu: Gpu, tmp_path: Path) -> None:
    """With a double of onnxruntime that computes on the CPU: captures of each length of step and of the draw, and
    the memory that its buffers take."""
    found = gathered(measure_model, Setup(tmp_path, "tiny", "int4", "cuda", 256), False)
    assert "CUDA, Recording GPU" in found["on"]
    assert (gpu.captures, gpu.names().count("replay") > 60) == (1 + MAX_STEP_TOKENS, True)
    assert 256 * found["kv_bytes_per_token"] < found["peak_memory_bytes"] < 16 << 20
    assert not report_file.is_missing(found | {"step_s": 1})


@pytest.mark.parametrize("decoder", ["fp16", "int8", "int4"])
def test_a_model_of_random_blocks_keeps_its_activations_in_size(tmp_path: Path, decoder: str) -> None:
    bundle = make_bundle(tmp_path, "tiny", decoder, 128)
    varco = Varco.load(bundle, provider="cpu", threads=1)
    logits = varco.backend.decode_step(3, 0)
    assert np.isfinite(logits).all()
    assert 0.01 < np.abs(logits).max() < 1e3


@pytest.mark.parametrize("decoder", ["fp16", "int4"])
def test_weights_that_share_a_range_answer_as_those_with_one_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: str
) -> None:
    """Both bundles hold the same weights, equal from layer to layer; onnxruntime reads one range several times."""
    shared = make_bundle(tmp_path, "tiny", decoder, 128, name="shared")
    monkeypatch.setattr(RandomGraph, "shares", False)
    apart = make_bundle(tmp_path, "tiny", decoder, 128, name="apart")
    logits = []
    for bundle in (shared, apart):
        backend = Varco.load(bundle, provider="cpu", threads=1).backend
        prompt = PromptInputs(np.arange(20), 0, None)
        logits.append(np.concatenate([backend.prefill(prompt, 0, 4).copy(), backend.decode_step(3, 20)[None]]))
    assert np.array_equal(logits[0], logits[1])
    assert np.ptp(logits[0]) > 0
    sizes = [(bundle / "decoder.onnx.data").stat().st_size for bundle in (shared, apart)]
    assert sizes[0] < 0.7 * sizes[1]
    manifests = [read_manifest(bundle) for bundle in (shared, apart)]
    assert manifests[0].decoder.weight_bytes == manifests[1].decoder.weight_bytes, "as much is read for a token"
    assert shared_bytes(shared) > 0.5 * (sizes[1] - sizes[0]), "the rest is the alignment of each to a page"
    assert shared_bytes(apart) == 0


@pytest.mark.parametrize("decoder", ["int4", "fp8", "bf16"])
def test_a_14b_takes_less_than_four_gigabytes_of_disk(decoder: str) -> None:
    """By the estimate that free disk is checked by, which the next test holds to real bundles."""
    assert bundle_bytes("14b", decoder) < 2.2e9
    assert loaded_bytes("14b", decoder) > 11e9
    assert bundle_bytes("14b-pairs", decoder) < 0.5 * bundle_bytes("14b", decoder)


def test_the_size_that_is_checked_is_that_of_the_bundle(tmp_path: Path) -> None:
    for decoder in ("fp16", "int4", "fp8"):
        bundle = make_bundle(tmp_path, "tiny", decoder, 128)
        size = sum(path.stat().st_size for path in bundle.glob("*.data"))
        # Rotary tables, norms and the alignment of every tensor to a page count here and not at full size.
        assert 0.4 * size < bundle_bytes("tiny", decoder) < 1.2 * size, decoder
        assert 0.4 * (size + shared_bytes(bundle)) < loaded_bytes("tiny", decoder) < size + shared_bytes(bundle), (
            decoder
        )
