"""What the tests of several backends share: a picture, the CPU to compare with, and doubles with a bundle for each."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import export_bundle
from tests.doubles import recording_onnxruntime, recording_tensorrt
from tests.doubles.recording_cuda import Device
from tests.doubles.recording_onnxruntime import Gpu
from tests.makers.cuda_graphs import export_in_fp32
from tests.makers.inputs import noise_picture
from varco_runtime import Varco

CUDA_CONTEXT = 512
TENSORRT_CONTEXT = 1024


@pytest.fixture
def image() -> Image.Image:
    return noise_picture()


@pytest.fixture
def cpu(tiny_bundle: Path) -> Varco:
    return Varco.load(tiny_bundle, threads=1)


@pytest.fixture(scope="session")
def cuda_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` for CUDA, in fp32 so that the double computes exactly."""
    return export_in_fp32(tiny_checkpoint, tmp_path_factory.mktemp("cuda") / "bundle", max_context=CUDA_CONTEXT)


@pytest.fixture
def gpu(cpu: Varco, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A double of CUDA through onnxruntime; after `cpu`, which needs the real onnxruntime."""
    gpu = Gpu()
    recording_onnxruntime.install(monkeypatch, gpu)
    return gpu


@pytest.fixture(scope="session")
def tensorrt_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` in fp32 with engines for SM89: two tiles a batch, 32 positions a chunk, 4 logits a run."""
    target = tmp_path_factory.mktemp("tensorrt") / "tiny"
    export_bundle(tiny_checkpoint, target, device="tensorrt", decoder="fp32", max_context=TENSORRT_CONTEXT)
    recording_tensorrt.add_engines(target)
    return target


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A double of CUDA and TensorRT."""
    device = Device()
    recording_tensorrt.install(monkeypatch, device)
    return device
