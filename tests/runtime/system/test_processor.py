"""The processor: cores as affinity and a container grant them, and kernels that overflow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from varco_runtime.system import processor as cores


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 64), ("200000 100000", 2), ("50000 100000", 1), ("nonsense", 64)]
)
def test_a_container_grants_a_share_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    (tmp_path / "cpu.max").write_text(quota)
    assert cores.usable_cores(tmp_path / "cpu.max") == expected


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "flags : avx2 avx512f avx512_vnni", False),
        ("x86_64", "flags : avx2 avx_vnni", False),
        ("x86_64", "flags : avx2 avx512f", True),
        ("AMD64", None, True),
        ("aarch64", "Features : asimddp", False),
    ],
)
def test_only_x86_without_vnni_overflows_in_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, flags: str | None, expected: bool
) -> None:
    monkeypatch.setattr(cores.platform, "machine", lambda: machine)
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(flags)
    assert cores.overflows_in_pairs(tmp_path / "cpuinfo") is expected
