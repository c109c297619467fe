"""Measuring transformers: what fails is left out alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import peer as peer_file
from benchmarks.gpu import report as report_file
from benchmarks.gpu.peer import measure_transformers
from benchmarks.gpu.stages import Setup
from tests.benchmarks.gpu.conftest import gathered


class FakePeer:
    """Figures without torch; the compiled cache runs out of memory."""

    about: dict[str, Any] = {"dtype": "fp32"}  # noqa: RUF012 - never changed

    def __init__(self, *_: Any) -> None:
        self.asked = 0

    def decode(self, context: int, cache: str) -> dict[str, Any]:
        if cache == "static":
            raise MemoryError("CUDA out of memory")
        return {"ms": 1.0}

    def give_back(self) -> None:
        pass

    def vision(self, num_tiles: int) -> dict[str, Any]:
        return {"ms": 2.0 * num_tiles}

    def picture(self, size_hw: tuple[int, int]) -> dict[str, Any]:
        return {"first_token_ms": 3.0}


def test_a_variant_of_transformers_that_fails_is_left_out_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peer_file, "missing_package", lambda: None)
    monkeypatch.setattr(peer_file, "Peer", FakePeer)
    setup = Setup(tmp_path, "tiny", "", "cpu", 8192)
    found = gathered(measure_transformers, setup, "fp32", {}, 60.0)
    assert found["decode"]["static"] == {"1024": {"left_out": "MemoryError: CUDA out of memory"}}
    assert found["decode"]["dynamic"] == {"1024": {"ms": 1.0}}, "one context"
    assert found["vision"]["10"] == {"ms": 20.0}
    assert report_file.is_missing(found | {"step_s": 1})
    # What is there is not told again; what failed is tried again, and not once the time is spent.
    again = gathered(measure_transformers, setup, "fp32", found, -1.0)
    assert set(again) == {"dtype", "decode"}
    assert set(again["decode"]) == {"static"}
    assert "was spent" in again["decode"]["static"]["1024"]["left_out"]


def test_a_missing_transformers_is_left_out_with_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = gathered(measure_transformers, Setup(tmp_path, "tiny", "", "cpu", 128), "fp32", {}, 60.0)
    assert found == {"left_out": "torch is not installed"}
