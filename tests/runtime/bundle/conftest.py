"""A bundle that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_bundle`."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
