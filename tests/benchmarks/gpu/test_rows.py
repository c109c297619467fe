"""The step `rows` of `gpu_check`, whole at tiny size: on the CPU, and on a GPU's double."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu.rows import ROWS, measure_rows
from benchmarks.gpu.stages import Setup
from tests.benchmarks.gpu.conftest import gathered
from tests.doubles.recording_onnxruntime import Gpu


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_rows_draws_and_gaps_are_measured(provider: str, tmp_path: Path, gpu: Gpu) -> None:
    found = gathered(measure_rows, Setup(tmp_path, "tiny", "int4", provider, 256))
    assert (gpu.captures > 0) == (provider == "cuda")
    assert set(found["steps"]) == {"1", *map(str, ROWS)}
    for count, step in found["steps"].items():
        assert step["tokens_per_s"] == pytest.approx(1e3 * int(count) / step["ms"])
    one, two = (found["steps"][count]["bytes"] for count in ("1", "2"))
    assert 0 < two - one < one
    assert found["drawn"]["8"]["ms"] > 0
    arrivals = found["arrivals"]
    assert arrivals["gaps"] > 10
    assert 0 < arrivals["gap_p50_ms"] <= arrivals["gap_p99_ms"]
    assert "does_not_apply" in found["kernels"]
    assert found["on"].startswith("onnxruntime")


def test_what_the_cpu_has_no_kernels_for_is_said(tmp_path: Path) -> None:
    found = gathered(measure_rows, Setup(tmp_path, "tiny", "fp8", "cpu", 256))
    assert found == {"does_not_apply": "the CPU has no kernels for fp8"}
