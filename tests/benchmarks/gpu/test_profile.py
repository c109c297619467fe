"""Where the time of a step goes, by operators and by kernels."""

from __future__ import annotations

import importlib.machinery
import os
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from benchmarks.gpu.model import make_bundle
from benchmarks.gpu.profile import operators, profile_kernels, profile_operators
from benchmarks.gpu.stages import Setup, load_model
from tests.benchmarks.gpu.conftest import gathered
from tests.doubles.recording_onnxruntime import Gpu, Session
from varco_runtime.bundle.opening import read_manifest


def test_a_profile_is_summed_by_operator_within_its_span() -> None:
    def event(name: str, operator: str, dur: int, ns: int) -> dict[str, Any]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": dur, "ns": ns, "args": {"op_name": operator}}

    events = [
        event("early", "MatMulNBits", 1000, 5),
        *(event("product", "MatMulNBits", 500, ns) for ns in (10, 20, 30, 40)),
        *(event("attention", "GroupQueryAttention", 100, ns) for ns in (15, 35)),
        {"cat": "Session", "name": "model_run", "dur": 9000, "ns": 10, "args": {}},
    ]
    found = operators(events, (10, 4_000_010), 2, {"product": 64}, 100)
    assert (found["wall_ms"], found["total_ms"]) == pytest.approx((2.0, 1.1))
    assert found["gap_ms"] == pytest.approx(0.9)
    assert found["operators"] == [
        {"operator": "MatMulNBits", "count": 2, "ms": 1.0, "bytes": 128},
        {"operator": "GroupQueryAttention", "count": 1, "ms": 0.1, "bytes": 100},
    ]


def test_the_profile_of_a_step_has_every_product_with_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "0")  # put back afterwards
    setup = Setup(tmp_path, "tiny", "int4", "cpu", 128)
    found = gathered(profile_operators, setup)
    manifest = read_manifest(make_bundle(tmp_path, "tiny", "int4", 128))
    rows = {row["operator"]: row for row in found["decode"]["operators"]}
    assert rows["MatMulNBits"]["count"] == 5 * manifest.model.num_layers
    products = rows["MatMulNBits"]["bytes"] + rows["FusedMatMul"]["bytes"]
    assert products == pytest.approx(manifest.decoder.weight_bytes, rel=0.05)
    assert rows["GroupQueryAttention"]["bytes"] == 64 * manifest.kv_bytes_per_token
    assert found["prefill"]["wall_ms"] > found["prefill"]["total_ms"] > 0
    assert any(row["operator"] == "Attention" for row in found["vision"]["operators"])
    assert not list(tmp_path.glob("*.json")), "the profiles are removed"


def test_what_is_profiled_on_a_gpu_is_not_captured(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "0")
    for name in ("get_profiling_start_time_ns", "end_profiling"):  # the double computes on the CPU, which has them
        monkeypatch.setattr(Session, name, lambda self, name=name: getattr(self.inner, name)(), raising=False)
    found = gathered(profile_operators, Setup(tmp_path, "tiny", "int4", "cuda", 128))
    assert found["decode"]["total_ms"] > 0
    assert gpu.captures == 0, "nodes inside a graph do not show"
    assert os.environ["CUDA_LAUNCH_BLOCKING"] == "1", "or a node's time is that of its launch"


def test_kernels_are_read_from_the_step_as_it_is_used(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A double of torch's profiler that saw two kernels, and something that took no time on the device."""
    kernels = [("copy", 8.0, 16), ("product", 24.0, 8), ("a call", 0.0, 8)]
    events = [types.SimpleNamespace(key=key, self_device_time_total=us, count=n) for key, us, n in kernels]
    profile = mock.MagicMock()
    profile.return_value.__enter__.return_value.key_averages.return_value = events
    torch = mock.MagicMock(profiler=mock.MagicMock(profile=profile))
    torch.__spec__ = importlib.machinery.ModuleSpec("torch", None)
    monkeypatch.setitem(sys.modules, "torch", torch)
    setup = Setup(tmp_path, "tiny", "int4", "cuda", 128)
    stages, _ = load_model(setup, lambda place, figure: None)
    loaded = gpu.captures
    found = gathered(profile_kernels, stages, setup)
    decode = found["decode"]
    assert decode["kernels"] == [
        {"kernel": "product", "count": 1.0, "ms": 0.003},
        {"kernel": "copy", "count": 2.0, "ms": 0.001},
    ]
    assert decode["gap_ms"] == pytest.approx(decode["wall_ms"] - 0.004)
    assert set(found) == {"decode", "prefill", "vision"}
    assert gpu.captures == loaded + 1, "the step is captured anew, once CUDA's profiler is there"


def test_kernels_are_not_asked_for_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setup = Setup(tmp_path, "tiny", "int4", "cpu", 128)
    stages, _ = load_model(setup, lambda place, figure: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = gathered(profile_kernels, stages, setup)
    assert found == {"does_not_apply": "torch, whose profiler reads CUDA's, is not installed"}
