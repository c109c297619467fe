"""A bundle with engines, loaded onto a double of CUDA and TensorRT."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.recording_cuda import Device
from tests.makers.refusals import assert_refused
from tests.runtime.backends.conftest import TENSORRT_CONTEXT
from varco_runtime import Varco
from varco_runtime.backends.tensorrt.backend import TensorRtBackend
from varco_runtime.errors import VarcoError

MAX_CONTEXT = TENSORRT_CONTEXT


@pytest.fixture(scope="session")
def bundle(tensorrt_bundle: Path) -> Path:
    return tensorrt_bundle


@pytest.fixture
def changed(bundle: Path, tmp_path: Path) -> Path:
    """A copy for tests that alter it."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


@pytest.fixture
def varco(bundle: Path, device: Device) -> Varco:
    return Varco.load(bundle)


def backend_of(varco: Varco) -> TensorRtBackend:
    assert isinstance(varco.backend, TensorRtBackend)
    return varco.backend


def refused(bundle: Path, device: Device, error: type[VarcoError], match: str, **options: Any) -> None:
    """Loading must fail with one line, before anything is left on the device."""
    assert_refused(bundle, error, match, **options)
    gc.collect()
    device.assert_all_is_freed()


def shorter(component: str, profile: int, length: str, most: int = 1) -> Callable[[dict[str, Any]], None]:
    """A change for `add_engines`: one profile of an engine takes at most so many of a length."""

    def change(document: dict[str, Any]) -> None:
        if document["component"] == component:
            document["profiles"][profile][length] = [1, 1, most]

    return change
