"""CUDA and TensorRT as the runtime sees them, without either: a double at the boundary of their calls.

Device memory is numpy arrays at made-up addresses, filled with NaN when allocated and with guard space around. Nothing
that is asked for on the stream happens before the host synchronises: what is read too early is old, what is overwritten
too early is lost. An engine is a small file that names the component's ONNX graph and its profiles; a pass runs that
graph on ONNX Runtime's CPU provider, on the bytes that lie at the bound addresses when the pass is due.

What the real libraries leave undefined or do silently is an error here: an address that is misaligned, freed or not
long enough; a pass without a plain run between a change of shape and its capture; a replay after its context was
touched; a cache bound twice; a write beyond a cache; memory freed twice, or while work is under way.
"""

from __future__ import annotations

import bisect
import ctypes
import dataclasses
import enum
import hashlib
import json
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from varco_runtime.bundle import EngineFacts, FileFacts, read_manifest, write_manifest

Array = np.ndarray[Any, Any]
RTX_VERSION = "1.7.1.116"
FIRST_ADDRESS = 0x7F00_0000_0000
SCRATCH_BYTES = 4096
ALIGNMENT = 256


class CudaError(enum.IntEnum):
    """`cudaError_t`, with its true numbers."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class CopyKind(enum.IntEnum):
    """`cudaMemcpyKind`."""

    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class CaptureMode(enum.IntEnum):
    """`cudaStreamCaptureMode`."""

    cudaStreamCaptureModeThreadLocal = 1


@dataclasses.dataclass(eq=False)
class Work:
    """One thing for the stream to do. `is_valid` says whether a graph may still replay it."""

    name: tuple[Any, ...]
    do: Callable[[], None]
    is_valid: Callable[[], bool] = lambda: True


class Device:
    """A GPU, its driver, and what was asked of it. `asked` are the calls, `done` what the stream has done."""

    def __init__(self) -> None:
        self.name = "Recording GPU"
        self.capability = (8, 9)
        self.memory_bytes = 1 << 30
        self.is_integrated = False
        self.driver_version = 13040
        self.num_devices = 1
        self.can_capture = True
        self.fault: CudaError | None = None
        self.asked: list[tuple[Any, ...]] = []
        self.done: list[tuple[Any, ...]] = []
        self.errors: list[str] = []
        self.memory: dict[int, Array] = {}
        self.pinned: dict[int, Array] = {}
        self.engine_bytes = 0
        self.streams: set[int] = set()
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self.queue: list[Work] = []
        self.recording: list[Work] | None = None
        self.is_spoilt = False
        self.contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self._next = FIRST_ADDRESS

    # -- memory -------------------------------------------------------------------------------------------------------

    def free_bytes(self) -> int:
        return self.memory_bytes - self.engine_bytes - sum(len(array) for array in self.memory.values())

    def allocate(self, num_bytes: int) -> int:
        address = self._next
        self._next += -(-num_bytes // ALIGNMENT) * ALIGNMENT + (1 << 20)
        self.memory[address] = np.full(num_bytes, 0xFF, np.uint8)
        return address

    def bytes_at(self, address: int, num_bytes: int) -> Array:
        """A view of device memory, which must lie in one allocation."""
        bases = sorted(self.memory)
        place = bisect.bisect_right(bases, address) - 1
        assert place >= 0, f"{address:#x} is not device memory"
        offset = address - bases[place]
        array = self.memory[bases[place]]
        assert offset + num_bytes <= len(array), (
            f"bytes {offset}..{offset + num_bytes} of an allocation of {len(array)}"
        )
        return array[offset : offset + num_bytes]

    # -- the stream ---------------------------------------------------------------------------------------------------

    def ask(self, stream: int, name: tuple[Any, ...], do: Callable[[], None], is_valid: Any = lambda: True) -> None:
        assert int(stream) in self.streams, f"{stream} is no stream"
        self.asked.append(name)
        work = Work(name, do, is_valid)
        (self.queue if self.recording is None else self.recording).append(work)

    def work_off(self) -> None:
        while self.queue:
            work = self.queue.pop(0)
            work.do()
            self.done.append(work.name)

    def assert_all_is_freed(self) -> None:
        left = [len(self.memory), len(self.pinned), len(self.streams), len(self.graphs), len(self.executables)]
        assert left == [0, 0, 0, 0, 0], f"memory, pinned memory, streams, graphs, executables left: {left}"
        assert self.engine_bytes == 0, "an engine is still loaded"


def cuda_runtime(device: Device) -> types.ModuleType:
    """A `cuda.bindings.runtime` for the device: every call gives a tuple that begins with an error code."""
    module = types.ModuleType("cuda.bindings.runtime")
    module.cudaError_t = CudaError  # type: ignore[attr-defined]
    module.cudaMemcpyKind = CopyKind  # type: ignore[attr-defined]
    module.cudaStreamCaptureMode = CaptureMode  # type: ignore[attr-defined]
    module.cudaStreamNonBlocking = 1  # type: ignore[attr-defined]
    for name in dir(CudaCalls):
        if name.startswith("cuda"):
            setattr(module, name, getattr(CudaCalls(device), name))
    return module


class CudaCalls:
    """The functions of the double's `cuda.bindings.runtime`, with the parameters of the real one."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def cudaGetDeviceCount(self) -> tuple[CudaError, int | None]:
        if self._device.driver_version < 13000:
            return CudaError.cudaErrorInsufficientDriver, None
        if not self._device.num_devices:
            return CudaError.cudaErrorNoDevice, None
        return CudaError.cudaSuccess, self._device.num_devices

    def cudaDriverGetVersion(self) -> tuple[CudaError, int]:
        return CudaError.cudaSuccess, self._device.driver_version

    def cudaRuntimeGetVersion(self) -> tuple[CudaError, int]:
        return CudaError.cudaSuccess, 13040

    def cudaGetErrorString(self, error: CudaError) -> tuple[CudaError, bytes]:
        return CudaError.cudaSuccess, CudaError(error).name.encode()

    def cudaGetLastError(self) -> tuple[CudaError]:
        return (CudaError.cudaSuccess,)

    def cudaSetDevice(self, device: int) -> tuple[CudaError]:
        assert device == 0
        return (CudaError.cudaSuccess,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[CudaError, Any]:
        major, minor = self._device.capability
        facts = types.SimpleNamespace(name=self._device.name.encode(), major=major, minor=minor)
        facts.integrated = int(self._device.is_integrated)
        return CudaError.cudaSuccess, facts

    def cudaMemGetInfo(self) -> tuple[CudaError, int, int]:
        return CudaError.cudaSuccess, self._device.free_bytes(), self._device.memory_bytes

    def cudaMalloc(self, size: int) -> tuple[CudaError, int | None]:
        assert self._device.recording is None, "memory is allocated during a capture"
        if size > self._device.free_bytes():
            return CudaError.cudaErrorMemoryAllocation, None
        return CudaError.cudaSuccess, self._device.allocate(size)

    def cudaFree(self, devPtr: int) -> tuple[CudaError]:
        device = self._device
        assert devPtr in device.memory, f"{devPtr:#x} is freed twice, or was never allocated"
        assert not device.queue, "memory is freed while work is under way"
        assert all(context.scratch != devPtr for context in device.contexts), "a context still works in this memory"
        del device.memory[devPtr]
        return (CudaError.cudaSuccess,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[CudaError, int]:
        array = np.full(size, 0xFF, np.uint8)
        self._device.pinned[array.ctypes.data] = array
        return CudaError.cudaSuccess, array.ctypes.data

    def cudaFreeHost(self, ptr: int) -> tuple[CudaError]:
        del self._device.pinned[ptr]
        return (CudaError.cudaSuccess,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: CopyKind, stream: int) -> tuple[CudaError]:
        self.cudaMemcpy2DAsync(dst, count, src, count, count, 1, kind, stream)
        return (CudaError.cudaSuccess,)

    def cudaMemcpy2DAsync(
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: CopyKind, stream: int
    ) -> tuple[CudaError]:
        assert width <= dpitch
        assert width <= spitch
        device = self._device

        def copy() -> None:
            for row in range(height):
                source, target = src + row * spitch, dst + row * dpitch
                if kind is CopyKind.cudaMemcpyHostToDevice:
                    device.bytes_at(target, width)[:] = host_bytes(source, width)
                elif kind is CopyKind.cudaMemcpyDeviceToHost:
                    host_bytes(target, width)[:] = device.bytes_at(source, width)
                else:
                    assert abs(source - target) >= width, "a copy overlaps itself"
                    device.bytes_at(target, width)[:] = device.bytes_at(source, width)

        device.ask(stream, (kind.name.removeprefix("cudaMemcpy"), width * height), copy)
        return (CudaError.cudaSuccess,)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: int) -> tuple[CudaError]:
        return self.cudaMemset2DAsync(devPtr, count, value, count, 1, stream)

    def cudaMemset2DAsync(
        self, devPtr: int, pitch: int, value: int, width: int, height: int, stream: int
    ) -> tuple[CudaError]:
        assert 0 < width <= pitch

        def fill() -> None:
            for row in range(height):
                self._device.bytes_at(devPtr + row * pitch, width)[:] = value

        self._device.ask(stream, ("Set", width * height), fill)
        return (CudaError.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[CudaError, int]:
        stream = 1000 + len(self._device.streams)
        self._device.streams.add(stream)
        return CudaError.cudaSuccess, stream

    def cudaStreamDestroy(self, stream: int) -> tuple[CudaError]:
        self._device.streams.remove(stream)
        return (CudaError.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[CudaError]:
        assert stream in self._device.streams
        if self._device.recording is not None:
            self._device.is_spoilt = True
            return (CudaError.cudaErrorStreamCaptureUnsupported,)
        self._device.asked.append(("Wait",))
        if self._device.fault is not None:
            self._device.queue.clear()
            return (self._device.fault,)
        self._device.work_off()
        return (CudaError.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: CaptureMode) -> tuple[CudaError]:
        assert self._device.recording is None, "a capture within a capture"
        assert mode is CaptureMode.cudaStreamCaptureModeThreadLocal
        self._device.asked.append(("Capture",))
        self._device.recording, self._device.is_spoilt = [], False
        return (CudaError.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[CudaError, int | None]:
        device = self._device
        assert device.recording is not None, "no capture has begun"
        recorded, device.recording = device.recording, None
        if device.is_spoilt or not device.can_capture:
            return CudaError.cudaErrorStreamCaptureInvalidated, None
        handle = device.allocate(0)
        del device.memory[handle]
        device.graphs[handle] = recorded
        return CudaError.cudaSuccess, handle

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[CudaError, int]:
        self._device.executables[graph + 1] = self._device.graphs[graph]
        return CudaError.cudaSuccess, graph + 1

    def cudaGraphDestroy(self, graph: int) -> tuple[CudaError]:
        del self._device.graphs[graph]
        return (CudaError.cudaSuccess,)

    def cudaGraphLaunch(self, graphExec: int, stream: int) -> tuple[CudaError]:
        works = self._device.executables[graphExec]
        assert all(work.is_valid() for work in works), "a graph is replayed after its context was touched"
        self._device.asked.append(("Replay",))
        self._device.queue.extend(works)
        return (CudaError.cudaSuccess,)

    def cudaGraphExecDestroy(self, graphExec: int) -> tuple[CudaError]:
        del self._device.executables[graphExec]
        return (CudaError.cudaSuccess,)


def host_bytes(address: int, num_bytes: int) -> Array:
    """A view of the host's memory."""
    assert address < FIRST_ADDRESS or address > FIRST_ADDRESS + (1 << 40), "device memory where the host's was meant"
    return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))


# --- TensorRT ---------------------------------------------------------------------------------------------------------

DataType = enum.Enum("DataType", ["FLOAT", "HALF", "BF16", "INT64", "BOOL", "INT32"])
TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO"])
AllocationStrategy = enum.Enum("AllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"])
SpecializationStrategy = enum.Enum("SpecializationStrategy", ["LAZY", "EAGER", "NONE"])

TYPES: dict[int, tuple[DataType, np.dtype[Any]]] = {
    onnx.TensorProto.FLOAT: (DataType.FLOAT, np.dtype(np.float32)),
    onnx.TensorProto.FLOAT16: (DataType.HALF, np.dtype(np.float16)),
    onnx.TensorProto.INT64: (DataType.INT64, np.dtype(np.int64)),
    onnx.TensorProto.BOOL: (DataType.BOOL, np.dtype(np.bool_)),
}


class ILogger:
    """The base that a logger must inherit from, and initialise."""

    INTERNAL_ERROR, ERROR, WARNING, INFO = Severity

    def __init__(self) -> None:
        self.is_initialised = True


def tensorrt_module(device: Device, name: str, version: str) -> types.ModuleType:
    """A `tensorrt` or `tensorrt_rtx` for the device."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            assert logger.is_initialised
            self._logger = weakref.ref(logger)  # as the real one: whoever made it must keep it

        def deserialize_cuda_engine(self, serialized_engine: Any) -> Engine | None:
            logger = self._logger()
            assert logger is not None, "the logger is gone"
            device.errors_to = lambda text: logger.log(Severity.ERROR, text)  # type: ignore[attr-defined]
            content = bytes(serialized_engine)
            try:
                document = json.loads(content)
            except ValueError:
                logger.log(Severity.ERROR, "Serialization assertion magicTag failed.\nsecond line")
                logger.log(Severity.ERROR, "and more")
                return None
            return Engine(device, document, is_rtx=name == "tensorrt_rtx", num_bytes=len(content))

    module = types.ModuleType(name)
    module.__version__ = version  # type: ignore[attr-defined]
    contents = {
        "ILogger": ILogger,
        "Runtime": Runtime,
        "DataType": DataType,
        "TensorIOMode": TensorIOMode,
        "TensorLocation": TensorLocation,
        "ExecutionContextAllocationStrategy": AllocationStrategy,
    }
    if name == "tensorrt_rtx":
        contents["DynamicShapesKernelSpecializationStrategy"] = SpecializationStrategy
    for key, value in contents.items():
        setattr(module, key, value)
    return module


@dataclasses.dataclass
class Port:
    """An input or output of a graph; a name in `dims` is a length that each run chooses."""

    data_type: DataType
    dtype: np.dtype[Any]
    dims: tuple[int | str, ...]
    is_input: bool


class RuntimeConfig:
    """How an execution context of TensorRT for RTX behaves."""

    def __init__(self) -> None:
        self.strategy: Any = AllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy: Any = SpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class Engine:
    """An `ICudaEngine`."""

    def __init__(self, device: Device, document: dict[str, Any], is_rtx: bool, num_bytes: int) -> None:
        self.device = device
        self.name = document["component"]
        self.profiles: list[dict[str, list[int]]] = document["profiles"]
        self.aliases: dict[str, str] = document.get("aliases", {})
        self.on_host: list[str] = document.get("on_host", [])
        self.is_rtx = is_rtx
        graph = onnx.load(document["graph"], load_external_data=False).graph
        self.ports = {value.name: _port(value, True) for value in graph.input}
        self.ports |= {value.name: _port(value, False) for value in graph.output}
        self.session = _session(document["graph"])
        device.engine_bytes += num_bytes
        weakref.finalize(self, _give_back, device, num_bytes)
        self.num_io_tensors = len(self.ports)
        self.num_optimization_profiles = len(self.profiles)
        if is_rtx:
            self.create_runtime_config = RuntimeConfig

    def get_tensor_name(self, index: int) -> str:
        return list(self.ports)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.ports[name].data_type

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(length, str) else length for length in self.ports[name].dims)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if self.ports[name].is_input else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in self.on_host else TensorLocation.DEVICE

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self.aliases.get(name, name.replace("present.", "past.") if name.startswith("present.") else None)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        limits = self.profiles[profile_index]
        dims = self.ports[name].dims
        return [tuple(limits[d][end] if isinstance(d, str) else d for d in dims) for end in (0, 1, 1)]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return SCRATCH_BYTES * (profile_index + 1)

    def create_execution_context(self, how: Any) -> Context:
        strategy = how.strategy if isinstance(how, RuntimeConfig) else how
        assert strategy is AllocationStrategy.USER_MANAGED
        return RtxContext(self) if self.is_rtx else Context(self)


class Context:
    """An `IExecutionContext`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.device = engine.device
        self.profile: int | None = None
        self.scratch = 0
        self.addresses: dict[str, int] = {}
        self.lengths: dict[str, tuple[int, ...]] = {}
        self.version = 0
        self.version_run = -1
        self.device.contexts.add(self)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle in self.device.streams
        if profile_index >= self.engine.num_optimization_profiles:
            return self._refuse(f"there is no profile {profile_index}")
        self.profile = profile_index
        self.version += 1
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self.profile is not None
        assert size >= self.engine.get_device_memory_size_for_profile_v2(self.profile)
        self.device.bytes_at(memory, size)
        self.scratch, self.scratch_bytes = memory, size
        self.version += 1

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in self.engine.ports
        assert memory % ALIGNMENT == 0, f"{name} is bound to the misaligned {memory:#x}"
        self.addresses[name] = memory
        self.version += 1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        if len(shape) != len(low) or not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            return self._refuse(f"{name} {shape} lies outside {low}..{high}")
        self.lengths[name] = tuple(shape)
        self.version += 1
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        named = self._named_lengths()
        return tuple(named.get(d, -1) if isinstance(d, str) else d for d in self.engine.ports[name].dims)

    def _named_lengths(self) -> dict[str, int]:
        named: dict[str, int] = {}
        for name, shape in self.lengths.items():
            for length, dim in zip(shape, self.engine.ports[name].dims, strict=True):
                if isinstance(dim, str):
                    named.setdefault(dim, length)
        return named

    def execute_async_v3(self, stream_handle: int) -> bool:
        device, engine = self.device, self.engine
        shapes = {name: self.get_tensor_shape(name) for name in engine.ports}
        for name, shape in shapes.items():
            assert -1 not in shape, f"{engine.name}: {name} has the shape {shape}"
            assert self.lengths.get(name, shape) == shape, f"{engine.name}: {name} {self.lengths[name]} is not {shape}"
            device.bytes_at(self.addresses[name], int(np.prod(shape)) * engine.ports[name].dtype.itemsize)
            if name.startswith("present."):
                assert self.addresses[name] == self.addresses[name.replace("present.", "past.")], "a cache is copied"
        if device.recording is None:
            self.version_run = self.version
        elif self.version_run != self.version:
            return self._refuse("a capture without a plain run after a change of shape")
        elif not device.can_capture:
            return self._refuse("this cannot be captured")
        version, addresses = self.version, dict(self.addresses)
        lengths = tuple(sorted(self._named_lengths().items()))
        context = weakref.ref(self)

        def is_valid() -> bool:
            held = context()
            return held is not None and held.version == version

        device.ask(stream_handle, ("Run", engine.name, lengths), lambda: self._run(addresses, shapes), is_valid)
        return True

    def _run(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        """The graph on the bytes that lie at the addresses now."""
        ports = self.engine.ports
        self.device.bytes_at(self.scratch, self.scratch_bytes)[:] = 0x5A

        def tensor(name: str) -> Array:
            num_bytes = int(np.prod(shapes[name])) * ports[name].dtype.itemsize
            return self.device.bytes_at(addresses[name], num_bytes).view(ports[name].dtype).reshape(shapes[name])

        feeds = {name: tensor(name).copy() for name, port in ports.items() if port.is_input}
        for name, array in feeds.items():
            if array.dtype == np.bool_:
                assert array.view(np.uint8).max() <= 1, f"{name} holds neither true nor false"
            elif array.dtype != np.int64:
                assert np.isfinite(array).all(), f"{self.engine.name} reads {name}, which was never written"
        if "write_indices" in feeds:
            cache = shapes["past.0.key"][2]
            last = int(feeds["write_indices"][0]) + shapes["inputs_embeds"][1]
            assert last <= cache, f"a write up to {last} of {cache} positions, which TensorRT ignores"
        outputs = [name for name, port in ports.items() if not port.is_input]
        for name, value in zip(outputs, self.engine.session.run(outputs, feeds), strict=True):
            tensor(name)[...] = value

    def _refuse(self, reason: str) -> bool:
        self.device.errors_to(reason)  # type: ignore[attr-defined]
        return False


class RtxContext(Context):
    """What TensorRT for RTX adds."""

    def is_stream_capturable(self, stream: int) -> bool:
        return self.device.can_capture


def _give_back(device: Device, num_bytes: int) -> None:
    device.engine_bytes -= num_bytes


def _port(value: onnx.ValueInfoProto, is_input: bool) -> Port:
    tensor = value.type.tensor_type
    data_type, dtype = TYPES[tensor.elem_type]
    return Port(data_type, dtype, tuple(d.dim_param or d.dim_value for d in tensor.shape.dim), is_input)


_SESSIONS: dict[tuple[str, int], Any] = {}


def _session(path: str) -> Any:
    key = path, Path(path).stat().st_mtime_ns
    if key not in _SESSIONS:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # it warns of every cache it copies
        options.intra_op_num_threads = 1
        _SESSIONS[key] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return _SESSIONS[key]


# --- a device and a bundle for tests ----------------------------------------------------------------------------------


def install(monkeypatch: pytest.MonkeyPatch, device: Device, version: str = RTX_VERSION) -> None:
    """Put the double where the runtime imports the libraries from."""
    bindings = types.ModuleType("cuda.bindings")
    bindings.runtime = cuda_runtime(device)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", bindings.runtime)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", tensorrt_module(device, "tensorrt_rtx", version))
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_module(device, "tensorrt", "11.4.0.12"))


def profiles(component: str, facts: EngineFacts, image_tokens: int) -> list[dict[str, list[int]]]:
    """The profiles that `varco engines` builds, as lengths from .. to."""
    tiles, sequence = [1, facts.max_tiles], [1, facts.prefill_tokens]
    if component in ("vision", "projector"):
        return [{"tiles": tiles}]
    if component == "packing":
        return [{"tiles": tiles, "tokens": [1, image_tokens]}]
    if component == "embedding":
        return [{"sequence": sequence}]
    total = [1, facts.max_context]
    return [
        {"sequence": sequence, "total": total, "num_logits": [1, facts.max_logits]},
        {"sequence": [1, 1], "total": total, "num_logits": [1, 1]},
    ]


def add_engines(
    bundle: Path, changes: Callable[[dict[str, Any]], None] | None = None, image_tokens: int = 4096, **facts: Any
) -> None:
    """Give a bundle engines that the double can load. `facts` differ from the defaults; `changes` alter a file."""
    manifest = read_manifest(bundle)
    engines, files = [], dict(manifest.files)
    for component, network in manifest.components.items():
        fact = EngineFacts(
            component=component,
            file=f"engines/sm89/{component}.engine",
            builder="tensorrt_rtx",
            builder_version=RTX_VERSION,
            target="sm89",
            precision=network.precision,
            max_context=manifest.max_context,
            max_tiles=64 if component == "packing" else 2,
            prefill_tokens=32,
            max_logits=4,
        )
        fact = dataclasses.replace(fact, **facts)
        document = {
            "component": component,
            "graph": str(bundle / network.file),
            "profiles": profiles(component, fact, image_tokens),
        }
        if changes is not None:
            changes(document)
        content = json.dumps(document).encode()
        path = bundle / fact.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        files[fact.file] = FileFacts(len(content), hashlib.sha256(content).hexdigest())
        engines.append(fact)
    write_manifest(bundle, dataclasses.replace(manifest, engines=tuple(engines), files=files))


def runs(events: list[tuple[Any, ...]], component: str) -> Iterator[dict[str, int]]:
    """The lengths of each run of a component."""
    return (dict(event[2]) for event in events if event[:2] == ("Run", component))
