"""The command at tiny size on the CPU, and a GPU's double."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_check
from benchmarks.gpu import memory_use
from benchmarks.gpu import report as report_file
from benchmarks.gpu import run as run_file
from benchmarks.gpu.process import Tell
from tests.doubles.recording_onnxruntime import Gpu, install
from varco_runtime.backends.cuda.driver import GpuFacts

Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The command at tiny size with more arguments: its status and the report afterwards."""
    out = tmp_path / "out"

    def command(*arguments: str) -> tuple[int, dict[str, Any]]:
        common = ["--shape", "tiny", "--provider", "cpu", "--out", str(out), "--folder", str(tmp_path / "work")]
        status = gpu_check.main([*common, *arguments])
        report = out / run_file.REPORT
        return status, json.loads(report.read_text()) if report.exists() else {}

    return command


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every part takes no time and tells one figure; what was measured, in order."""
    ran: list[str] = []

    def at_once(measure: Callable[..., None], arguments: Any, tell: Tell, timeout_s: float) -> None:
        ran.append(measure.__name__)
        tell(("ms",), {"default": float(len(ran))})

    monkeypatch.setattr(run_file, "run_apart", at_once)
    return ran


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """onnxruntime with CUDA on a machine without a GPU: a double, see recording_onnxruntime.py."""
    made = Gpu()
    install(monkeypatch, made)

    def facts() -> GpuFacts:
        return dataclasses.replace(made.facts, free_bytes=made.facts.total_bytes - sum(made.memory.values()))

    monkeypatch.setattr(memory_use, "find_gpu", facts)
    return made


def gathered(measure: Callable[..., None], *arguments: Any) -> dict[str, Any]:
    """What a measurement tells, in this process."""
    figures: dict[str, Any] = {}

    def tell(place: tuple[str, ...], figure: Any) -> None:
        report_file.at(figures, place[:-1])[place[-1]] = figure

    measure(*arguments, tell)
    return figures
