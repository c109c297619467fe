"""`python -m benchmarks.gpu_check` on the stub libraries: it stops where nothing is computed, and measures whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.provider.conftest import ROOT, require_provider

require_provider()

PAIR = """
import sys
from pathlib import Path
from benchmarks.gpu.pairs import measure_variant
from benchmarks.gpu.stages import Setup
from benchmarks.gpu.variants import VARIANTS

variant = next(one for one in VARIANTS if one.name == sys.argv[1])
setup = Setup(Path(sys.argv[2]), "tiny-pairs", "int4", "cuda", 256, variant.bundle, variant.export)
measure_variant(setup, variant, lambda place, figure: None)
"""
FAMILIES = {
    "GEMM": "GemmFpAIntB",
    "GEMV": "fpA_intB_gemv::kernel<",
    "paired": "kernel_paired<",
    "unpacked": "::Dequantize",
}


def run_on_stubs(stubs: Path, log: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process, and those that it starts, for which the stub libraries are CUDA's."""
    environment = {
        "LD_LIBRARY_PATH": str(stubs),
        "PYTHONPATH": str(ROOT),
        "VARCO_STUB_LOG": str(log),
        "VARCO_STUB_CAPABILITY": "90",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def check(stubs: Path, folder: Path, *steps: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    paths = ["--out", str(folder / "out"), "--folder", str(folder / "work")]
    arguments = ["-m", "benchmarks.gpu_check", "--shape", "tiny", *paths, "--budget-s", "4800", "--steps", *steps]
    done = run_on_stubs(stubs, Path(os.devnull), *arguments)
    return done, json.loads((folder / "out" / "gpu_check.json").read_text())


def test_it_stops_where_the_device_computes_nothing(stubs: Path, tmp_path: Path) -> None:
    done, report = check(stubs, tmp_path, "environment", "tokens", "products", "int4")
    assert done.returncode == 1, done.stderr
    assert {name: step["status"] for name, step in report["steps"].items()} == {
        "environment": "done",
        "tokens": "failed",
    }
    assert "Stub GPU" in report["environment"]["doctor"]["cuda"]
    assert "Logits are off by 1 of the largest" in report["tokens"]["fp16"]["failed"]
    assert "step tokens: failed" in done.stdout
    done, report = check(stubs, tmp_path, "products")
    assert done.returncode == 1
    assert "are off by more than" in report["products"]["fp16-fp16"]["failed"]
    assert report["environment"]["session"] == "opened on cuda", "what was there is kept"


def test_every_figure_is_taken_on_the_provider(stubs: Path, tmp_path: Path) -> None:
    done, report = check(stubs, tmp_path, "int4", "pairs", "precisions", "small")
    assert done.returncode == 0, done.stderr
    assert {step["status"] for step in report["steps"].values()} == {"done"}, done.stdout
    assert set(report["shapes"]["tiny"]["models"]) == {"int4", "fp8", "bf16"}
    model = report["shapes"]["tiny"]["models"]["int4"]
    assert "CUDA, Stub GPU" in model["on"]
    assert {"decode", "steps", "vision", "pictures", "loop_overhead_ms", "peak_memory_bytes"} <= set(model)
    assert model["needed_memory_bytes"] > model["peak_memory_bytes"] > 0
    assert all(len(pair["ms"]) == 6 for pair in report["pairs"].values()), "the release knows every option"


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("default", {"GEMM", "GEMV"}),
        ("paired-k", {"GEMM", "GEMV", "paired"}),
        ("unpacked-prefill", {"unpacked"}),
        ("blocks-of-128", {"unpacked"}),
    ],
)
def test_a_variant_takes_other_kernels(stubs: Path, tmp_path: Path, variant: str, expected: set[str]) -> None:
    done = run_on_stubs(stubs, tmp_path / "log", "-c", PAIR, variant, str(tmp_path))
    assert done.returncode == 0, done.stderr
    names = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("name")]
    assert {family for family, part in FAMILIES.items() if any(part in name for name in names)} == expected
