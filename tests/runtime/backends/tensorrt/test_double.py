"""The double of CUDA and TensorRT against the real libraries, where they are installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.doubles.recording_cuda import CudaCalls, CudaError, Device
from tests.doubles.recording_tensorrt import (
    RTX_VERSION,
    AllocationStrategy,
    DataType,
    Engine,
    RtxContext,
    RuntimeCache,
    RuntimeConfig,
    SpecializationStrategy,
)
from tests.runtime.backends.tensorrt.conftest import refused
from varco_runtime.errors import BackendError


def test_the_double_has_the_calls_of_cuda_python() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    for name in dir(CudaCalls):
        if name.startswith("cuda"):
            call = getattr(CudaCalls, name)
            parameters = call.__code__.co_varnames[1 : call.__code__.co_argcount]
            signature = getattr(runtime, name).__doc__.splitlines()[0]
            found = [
                part.split(":")[0].split()[-1] for part in signature.partition("(")[2].rstrip(")").split(",") if part
            ]
            assert list(parameters) == found, signature
    for error in CudaError:
        assert int(getattr(runtime.cudaError_t, error.name)) == error


def test_the_double_has_the_names_of_tensorrt_for_rtx() -> None:
    module = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    own = {"device", "profiles", "ports", "session", "aliases", "on_host", "is_rtx", "engine", "compiles_at_once"}
    pairs = [(Engine, module.ICudaEngine), (RtxContext, module.IExecutionContext)]
    for double, real in (*pairs, (RuntimeConfig, module.IRuntimeConfig), (RuntimeCache, module.IRuntimeCache)):
        names = {name for name in dir(double) if not name.startswith("_")} - own
        assert not names - set(dir(real))
    assert {one.name for one in SpecializationStrategy} == set(
        module.DynamicShapesKernelSpecializationStrategy.__members__
    )
    assert {one.name for one in AllocationStrategy} == set(module.ExecutionContextAllocationStrategy.__members__)
    assert {one.name for one in DataType} <= set(module.DataType.__members__)


def test_the_real_library_says_in_one_line_why_it_loads_no_engine(
    bundle: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    if module.__version__ != RTX_VERSION:
        pytest.skip(f"TensorRT for RTX is {module.__version__}, the double's engines are of {RTX_VERSION}")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    message = rf"TensorRT for RTX {RTX_VERSION} could not load .*vision\.engine: .*deserializeCudaEngine"
    refused(bundle, device, BackendError, message)
