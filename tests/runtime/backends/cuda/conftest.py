"""A bundle for CUDA on a double of onnxruntime's provider that computes on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.doubles.recording_onnxruntime import Gpu, install
from tests.makers.cuda_graphs import export_in_fp32
from varco_runtime import Varco
from varco_runtime.backends.cuda.backend import CudaBackend
from varco_runtime.errors import VarcoError

MAX_CONTEXT = 512
VALUE = 4
"""Bytes of a value in fp32, in which these graphs compute."""


@pytest.fixture(scope="session")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_in_fp32(tiny_checkpoint, tmp_path_factory.mktemp("cuda") / "bundle", max_context=MAX_CONTEXT)


@pytest.fixture
def cpu(tiny_bundle: Path) -> Varco:
    return Varco.load(tiny_bundle, threads=1)


@pytest.fixture
def gpu(cpu: Varco, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """After `cpu`, which needs the real onnxruntime."""
    gpu = Gpu()
    install(monkeypatch, gpu)
    return gpu


@pytest.fixture
def varco(bundle: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Varco:
    monkeypatch.setattr("varco_runtime.backends.cuda.memory.BATCH_TILES", 3)
    monkeypatch.setattr("varco_runtime.backends.cuda.memory.PREFILL_TOKENS", 32)
    varco = Varco.load(bundle)
    gpu.asked.clear()
    return varco


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))


def backend_of(varco: Varco) -> CudaBackend:
    assert isinstance(varco.backend, CudaBackend)
    return varco.backend


@pytest.fixture(scope="session")
def host_rows(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("host") / "bundle"
    return export_in_fp32(tiny_checkpoint, folder, max_context=MAX_CONTEXT, embedding="host")


def refused(bundle: Path, error: type[VarcoError], match: str, **options: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        Varco.load(bundle, **{"provider": "cuda", **options})
    assert "\n" not in str(caught.value)
