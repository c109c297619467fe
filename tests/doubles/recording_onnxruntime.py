"""onnxruntime with a CUDA provider, without a GPU: a double at its Python boundary that computes on the CPU.

Device memory is host memory that the test alone knows to be the device's: filled with NaN when it is made, reached
through copies and bindings only. Every call is recorded.

What the real library leaves undefined or does silently is an error here: an address outside the device's memory; host
memory bound where the device's is needed; a session that may fall back to the CPU; a session with graphs run without a
word about which graph; a replay whose bindings are not those of the capture. As the real provider does, the first call
with a graph id runs the step three times, on every thread anew, and a replay uses the host values that were there at
the capture.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnxruntime
import pytest

from varco_runtime.backends.cuda.driver import GpuFacts

Array = np.ndarray[Any, Any]
WARM_UP_RUNS = 3
HOST_INPUTS = {"total_sequence_length"}
"""What the CUDA provider reads in the host's memory."""
ITEM_BYTES = {1: 4, 2: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 16: 2}


class Gpu:
    """A GPU, its driver and its onnxruntime. `asked` are the calls in order."""

    def __init__(self) -> None:
        self.facts = GpuFacts("Recording GPU", (9, 0), 140 << 30, 141 << 30, (13, 0))
        self.providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        self.missing: list[str] = []
        self.asked: list[tuple[Any, ...]] = []
        self.memory: dict[int, int] = {}
        self.fault: Callable[[str], Exception | None] = lambda call: None
        self.sessions: dict[str, Session] = {}
        self.captures = 0

    def note(self, *call: Any) -> None:
        self.asked.append(call)
        error = self.fault(call[0])
        if error is not None:
            raise error

    def check(self, address: int, num_bytes: int) -> None:
        """All these bytes lie in one piece of device memory."""
        inside = any(first <= address and address + num_bytes <= first + size for first, size in self.memory.items())
        assert inside, f"{num_bytes} bytes at {address:#x} are not memory of the device"

    def move(self, pieces: Iterable[tuple[int, int, int]]) -> None:
        """The driver's copies within the device's memory, none of which may overlap itself."""
        for target, source, num_bytes in pieces:
            self.note("move", num_bytes)
            self.check(target, num_bytes)
            self.check(source, num_bytes)
            assert abs(target - source) >= num_bytes, "a copy overlaps itself"
            ctypes.memmove(target, source, num_bytes)

    def clear(self, pieces: Iterable[tuple[int, int]]) -> None:
        """The driver's zeros."""
        for address, num_bytes in pieces:
            self.note("clear", num_bytes)
            self.check(address, num_bytes)
            ctypes.memset(address, 0, num_bytes)

    def names(self) -> list[str]:
        return [call[0] for call in self.asked]


class OrtValue:
    """A value of the device or the host."""

    def __init__(self, gpu: Gpu, value: Any, place: str, keep: Array | None = None) -> None:
        self.gpu, self.inner, self.place, self.keep = gpu, value, place, keep
        if place == "cuda":
            gpu.memory[value.data_ptr()] = value.tensor_size_in_bytes()

    def data_ptr(self) -> int:
        return int(self.inner.data_ptr())

    def shape(self) -> list[int]:
        return list(self.inner.shape())

    def numpy(self) -> Array:
        array: Array = self.inner.numpy().copy()
        if self.place == "cuda":
            self.gpu.note("read", array.nbytes)
        return array

    def update_inplace(self, array: Array) -> None:
        assert array.shape == tuple(self.inner.shape()), "the value has another shape"
        if self.place == "cuda":
            self.gpu.note("write", array.nbytes)
        self.inner.update_inplace(array)


class SessionOptions(onnxruntime.SessionOptions):  # type: ignore[misc]
    """The real ones."""


class RunOptions:
    """What a run asks for."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, key: str, text: str) -> None:
        self.entries[key] = text


class Binding:
    """What is bound, as addresses; and the real binding."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.inner = session.inner.io_binding()
        self.bound: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.host_values: dict[str, OrtValue] = {}

    def bind_ortvalue_input(self, name: str, value: OrtValue) -> None:
        on_host = name in HOST_INPUTS or "cuda" not in self.session.place
        assert value.place == ("cpu" if on_host else "cuda"), f"{name} is bound to memory of the {value.place}"
        if name in HOST_INPUTS:
            self.host_values[name] = value
        self.bound[name] = (value.data_ptr(), tuple(value.shape()))
        self.inner.bind_ortvalue_input(name, value.inner)

    def bind_input(self, name: str, place: str, index: int, kind: int, shape: list[int], address: int) -> None:
        self._check(name, place, index, kind, shape, address)
        self.inner.bind_input(name, "cpu", 0, kind, shape, address)

    def bind_output(self, name: str, place: str, index: int, kind: int, shape: list[int], address: int) -> None:
        self._check(name, place, index, kind, shape, address)
        self.inner.bind_output(name, "cpu", 0, kind, shape, address)

    def _check(self, name: str, place: str, index: int, kind: int, shape: list[int], address: int) -> None:
        assert index == 0
        if place == "cuda":
            self.session.gpu.check(address, math.prod(shape) * ITEM_BYTES[kind])
        self.bound[name] = (address, tuple(shape))


class Session:
    """A session that really runs on the CPU. `runs` are the shapes of each run by name of the bound value."""

    def __init__(self, gpu: Gpu, path: str, options: Any, providers: list[Any], disabled_optimizers: Any) -> None:
        self.disabled_optimizers = disabled_optimizers
        self.gpu = gpu
        self.name = path.rpartition("/")[2].removesuffix(".onnx")
        gpu.note("load", self.name)
        asked = [entry if isinstance(entry, str) else entry[0] for entry in providers]
        self.place = "cuda" if "CUDAExecutionProvider" in asked and not gpu.missing else "cpu"
        self.provider_options: dict[str, str] = next((entry[1] for entry in providers if isinstance(entry, tuple)), {})
        self.options = options
        self.inner = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.graphs: dict[tuple[int, str], tuple[dict[str, Any], dict[str, Array]]] = {}
        self.runs: list[dict[str, tuple[int, ...]]] = []
        gpu.sessions[self.name] = self

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"] if self.place == "cpu" else list(self.gpu.providers)

    def get_inputs(self) -> Any:
        return self.inner.get_inputs()

    def get_outputs(self) -> Any:
        return self.inner.get_outputs()

    def io_binding(self) -> Binding:
        return Binding(self)

    def run_with_iobinding(self, binding: Binding, options: RunOptions | None = None) -> None:
        assert binding.session is self
        graph = (options.entries if options else {}).get("gpu_graph_id")
        captures = self.provider_options.get("enable_cuda_graph") == "1"
        assert graph is not None or not captures, "this run would be captured under the id 0"
        self.runs.append({name: shape for name, (_, shape) in binding.bound.items()})
        if not captures or graph in (None, "-1"):
            self.gpu.note("run", self.name)
            self.inner.run_with_iobinding(binding.inner)
            return
        key = (threading.get_ident(), str(graph))
        if key not in self.graphs:
            self.gpu.note("capture", self.name)
            self.gpu.captures += 1
            values = {name: value.inner.numpy().copy() for name, value in binding.host_values.items()}
            self.graphs[key] = dict(binding.bound), values
            for _ in range(WARM_UP_RUNS):
                self.inner.run_with_iobinding(binding.inner)
            return
        self.gpu.note("replay", self.name)
        bound, values = self.graphs[key]
        assert binding.bound == bound, "a graph is replayed with other addresses or shapes than it was captured with"
        for name, value in values.items():
            binding.host_values[name].inner.update_inplace(value)
        self.inner.run_with_iobinding(binding.inner)


def onnxruntime_gpu(gpu: Gpu) -> types.ModuleType:
    """An `onnxruntime` whose CUDA provider is this GPU's."""
    module = types.ModuleType("onnxruntime")

    class Values:
        """`onnxruntime.OrtValue`, as far as it is used."""

        @staticmethod
        def ortvalue_from_numpy(array: Array, place: str = "cpu", index: int = 0) -> OrtValue:
            assert index == 0
            if place == "cpu":
                return OrtValue(gpu, onnxruntime.OrtValue.ortvalue_from_numpy(array), "cpu", array)
            gpu.note("upload", array.nbytes)
            own = array.copy()
            return OrtValue(gpu, onnxruntime.OrtValue.ortvalue_from_numpy(own), place, own)

        @staticmethod
        def ortvalue_from_shape_and_type(shape: list[int], kind: Any, place: str, index: int) -> OrtValue:
            assert index == 0
            own = np.empty(shape, kind)
            own.reshape(-1).view(np.uint8)[:] = 0xFF
            gpu.note("allocate", own.nbytes)
            return OrtValue(gpu, onnxruntime.OrtValue.ortvalue_from_numpy(own), place, own)

    def preload_dlls() -> None:
        gpu.asked.append(("preload",))
        for name in gpu.missing:
            print(f"Failed to load {name}: cannot open shared object file")

    def session(
        path: str, options: Any, providers: list[Any], enable_fallback: int = 1, disabled_optimizers: Any = None
    ) -> Session:
        assert not enable_fallback, "what fails would be printed, and tried again on the CPU"
        return Session(gpu, path, options, providers, disabled_optimizers)

    module.__version__ = "1.31.1"  # type: ignore[attr-defined]
    module.OrtValue = Values  # type: ignore[attr-defined]
    module.SessionOptions = SessionOptions  # type: ignore[attr-defined]
    module.RunOptions = RunOptions  # type: ignore[attr-defined]
    module.InferenceSession = session  # type: ignore[attr-defined]
    module.get_available_providers = lambda: list(gpu.providers)  # type: ignore[attr-defined]
    module.preload_dlls = preload_dlls  # type: ignore[attr-defined]
    module.set_default_logger_severity = lambda level: None  # type: ignore[attr-defined]
    return module


def install(monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    """Let the runtime find this GPU and its onnxruntime."""
    monkeypatch.setitem(sys.modules, "onnxruntime", onnxruntime_gpu(gpu))
    monkeypatch.setattr("varco_runtime.backends.cuda.backend.find_gpu", lambda: gpu.facts)
    monkeypatch.setattr("varco_runtime.backends.cuda.session.move_bytes", gpu.move)
    monkeypatch.setattr("varco_runtime.backends.cuda.session.clear_bytes", gpu.clear)
    monkeypatch.setenv("ORT_ENABLE_XQA", "")
    monkeypatch.delenv("ORT_ENABLE_XQA")
