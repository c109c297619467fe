"""A bundle that a test may damage, and a cache that no other test has filled."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_bundle`."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that no other test has filled."""
    monkeypatch.setenv("VARCO_EDGE_CACHE", str(tmp_path / "cache"))
