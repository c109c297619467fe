"""Tests on a GPU through ONNX Runtime's CUDA provider; skipped with a reason where there is none.

python -m pytest tests/gpu                          # on a machine with an NVIDIA GPU and the extra cuda
VARCO_GPU_TESTS_ON=cpu python -m pytest tests/gpu   # the tests themselves, with the same backend on the CPU
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.gpu.tokens import MAX_CONTEXT, MODEL
from tests.conftest import export_bundle
from varco_export.tiny import make_tiny
from varco_runtime import Varco
from varco_runtime.backends.cuda.driver import find_gpu
from varco_runtime.backends.cuda.library import load_onnxruntime
from varco_runtime.errors import VarcoError


@pytest.fixture(scope="session")
def place() -> str:
    """The provider to test. Skips where it is not there."""
    if os.environ.get("VARCO_GPU_TESTS_ON") == "cpu":
        return "cpu"
    try:
        find_gpu()
        load_onnxruntime()
    except VarcoError as error:
        pytest.skip(f"no GPU to test on: {error}")
    return "cuda"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("gpu") / "checkpoint", MODEL)


@pytest.fixture(scope="session")
def exact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Varco:
    """The same checkpoint in fp32 on the CPU."""
    bundle = export_bundle(checkpoint, tmp_path_factory.mktemp("exact") / "bundle", max_context=MAX_CONTEXT)
    return Varco.load(bundle, threads=1)


@pytest.fixture(scope="session")
def fp16(place: str, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Varco:
    """The checkpoint in fp16 on the GPU, with acceptance probes."""
    folder = tmp_path_factory.mktemp("fp16") / "bundle"
    export_bundle(checkpoint, folder, device="cuda", decoder="fp16", max_context=2048, probes=True)
    return Varco.load(folder, provider=place)
