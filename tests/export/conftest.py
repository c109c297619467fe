"""Tiny checkpoints of any options, and copies of them to be broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from varco_export.tiny import TinyOptions, make_tiny

TINY = TinyOptions(seed=5)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A tiny checkpoint, made once for each set of options."""
    folder, done = tmp_path_factory.mktemp("checkpoints"), dict[TinyOptions, Path]()

    def make(**options: Any) -> Path:
        wanted = replace(TINY, **options)
        if wanted not in done:
            done[wanted] = make_tiny(folder / str(len(done)), wanted)
        return done[wanted]

    return make


@pytest.fixture
def copy(made: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of such a checkpoint, to be broken."""

    def make(**options: Any) -> Path:
        for file in made(**options).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path

    return make
