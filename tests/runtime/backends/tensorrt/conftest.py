"""A bundle with engines, loaded onto a double of CUDA and TensorRT."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import export_bundle
from tests.doubles.recording_cuda import Device
from tests.doubles.recording_tensorrt import add_engines, install
from varco_runtime import Varco
from varco_runtime.backends.tensorrt.backend import TensorRtBackend
from varco_runtime.errors import VarcoError

MAX_CONTEXT = 1024


@pytest.fixture(scope="session")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` for TensorRT in fp32, without engines."""
    target = tmp_path_factory.mktemp("tensorrt") / "tiny"
    return export_bundle(tiny_checkpoint, target, device="tensorrt", decoder="fp32", max_context=MAX_CONTEXT)


@pytest.fixture(scope="session")
def bundle(exported: Path) -> Path:
    """The same with engines for SM89: two tiles a batch, 32 positions a chunk, 4 logits a run."""
    add_engines(exported)
    return exported


@pytest.fixture
def changed(bundle: Path, tmp_path: Path) -> Path:
    """A copy for tests that alter it."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


@pytest.fixture
def cpu(tiny_bundle: Path) -> Varco:
    return Varco.load(tiny_bundle, threads=1)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    install(monkeypatch, device)
    return device


@pytest.fixture
def varco(bundle: Path, device: Device) -> Varco:
    return Varco.load(bundle)


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))


def backend_of(varco: Varco) -> TensorRtBackend:
    assert isinstance(varco.backend, TensorRtBackend)
    return varco.backend


def refused(bundle: Path, device: Device, error: type[VarcoError], match: str, **options: Any) -> None:
    """Loading must fail with one line, before anything is left on the device."""
    with pytest.raises(error, match=match) as caught:
        Varco.load(bundle, **options)
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()
    device.assert_all_is_freed()


def shorter(component: str, profile: int, length: str, most: int = 1) -> Callable[[dict[str, Any]], None]:
    """A change for `add_engines`: one profile of an engine takes at most so many of a length."""

    def change(document: dict[str, Any]) -> None:
        if document["component"] == component:
            document["profiles"][profile][length] = [1, 1, most]

    return change
