"""A bundle for CUDA on a double of onnxruntime's provider that computes on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.doubles.recording_onnxruntime import Gpu
from tests.makers.cuda_graphs import export_in_fp32
from tests.makers.refusals import assert_refused
from tests.runtime.backends.conftest import CUDA_CONTEXT
from varco_runtime import Varco
from varco_runtime.backends.cuda.backend import CudaBackend
from varco_runtime.errors import VarcoError

MAX_CONTEXT = CUDA_CONTEXT
VALUE = 4
"""Bytes of a value in fp32, in which these graphs compute."""


@pytest.fixture(scope="session")
def bundle(cuda_bundle: Path) -> Path:
    return cuda_bundle


@pytest.fixture
def varco(bundle: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Varco:
    monkeypatch.setattr("varco_runtime.backends.cuda.memory.BATCH_TILES", 3)
    monkeypatch.setattr("varco_runtime.backends.cuda.memory.PREFILL_TOKENS", 32)
    varco = Varco.load(bundle)
    gpu.asked.clear()
    return varco


def backend_of(varco: Varco) -> CudaBackend:
    assert isinstance(varco.backend, CudaBackend)
    return varco.backend


@pytest.fixture(scope="session")
def host_rows(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("host") / "bundle"
    return export_in_fp32(tiny_checkpoint, folder, max_context=MAX_CONTEXT, embedding="host")


def refused(bundle: Path, error: type[VarcoError], match: str, **options: Any) -> None:
    assert_refused(bundle, error, match, **{"provider": "cuda", **options})
