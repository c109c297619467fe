"""Bundles for TensorRT, with engines built without a GPU and without engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import export_bundle
from varco_export.engines.build import EngineOptions, EngineReport, build_engines
from varco_export.engines.builder import Builder, Built
from varco_export.writing.hashed_file import HashedFile

CONTEXT = 256


class Quiet:
    """Progress that keeps what it was told."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str, int, int]] = []

    @contextmanager
    def engine(self, name: str, target: str) -> Iterator[Callable[[str, int, int], None]]:
        yield lambda phase, done, steps: self.steps.append((name, phase, done, steps))


def build(bundle: Path, *sm: int, **options: Any) -> list[EngineReport]:
    return build_engines(bundle, EngineOptions(sm, **options), Quiet())


def export(checkpoint: Path, target: Path, decoder: str, **options: Any) -> Path:
    return export_bundle(
        checkpoint, target, **{"device": "tensorrt", "max_context": CONTEXT, **options}, decoder=decoder
    )


REPORTS: list[EngineReport] = []
PROGRESS = Quiet()


@pytest.fixture(scope="session")
def int4(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with engines for SM 89."""
    bundle = export(tiny_checkpoint, tmp_path_factory.mktemp("engines") / "bundle", "int4")
    REPORTS.extend(build_engines(bundle, EngineOptions((89,)), PROGRESS))
    return bundle


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of a few bytes instead of TensorRT's, for tests of what is around them."""

    def write(self: Builder, graph: Path, tensors: Any, profiles: Any, sm: int, target: Path, *rest: Any) -> Built:
        with HashedFile(target) as file:
            file.write(f"{graph.name} for {sm}, {profiles}".encode())
        return Built(file.facts(), 1.0, 2, 3)

    monkeypatch.setattr(Builder, "build", write)


@pytest.fixture
def fresh(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A bundle without engines."""
    return export(tiny_checkpoint, tmp_path / "bundle", "fp16")
