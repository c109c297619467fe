"""TensorRT as the runtime sees it, without a GPU: a double of its calls, on top of that of CUDA.

An engine is a small file that names the component's ONNX graph and its profiles; a pass runs that graph on ONNX
Runtime's CPU provider, on the bytes that lie at the bound addresses when the pass is due.

What the real library leaves undefined or does silently is an error here: an address that is misaligned or not long
enough; an input that was never written; a capture without a plain run after a change of shape; a cache that is not
updated in place; a write beyond a cache.
"""

from __future__ import annotations

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

from tests.doubles.recording_cuda import ALIGNMENT, Array, Device, cuda_runtime
from varco_export.engines.build import profiles
from varco_runtime.bundle.graph_contract import BATCH
from varco_runtime.bundle.manifest import EngineFacts, FileFacts
from varco_runtime.bundle.opening import read_manifest, write_manifest

RTX_VERSION = "1.7.1.116"
SCRATCH_BYTES = 4096

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


class RuntimeCache:
    """An `IRuntimeCache`: the kernels that were compiled, and the GPU that they are for."""

    def __init__(self, device: Device) -> None:
        self.gpu = str(device.capability)
        self.kernels: set[str] = set()

    def serialize(self) -> bytes:
        return json.dumps([self.gpu, sorted(self.kernels)]).encode()

    def deserialize(self, blob: bytes) -> bool:
        try:
            gpu, kernels = json.loads(blob)
        except ValueError:
            return False
        self.kernels |= set(kernels) if gpu == self.gpu else set()
        return bool(gpu == self.gpu)


class RuntimeConfig:
    """An `IRuntimeConfig`: how an execution context of TensorRT for RTX behaves."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.strategy: Any = AllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy: Any = SpecializationStrategy.LAZY
        self.cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.device)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


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
        has_rows = any(BATCH in lengths and lengths[BATCH][2] > 1 for lengths in self.profiles)
        self.ports = {value.name: _port(value, True, has_rows) for value in graph.input}
        self.ports |= {value.name: _port(value, False, has_rows) for value in graph.output}
        self.session = _session(document["graph"])
        device.engine_bytes += num_bytes
        weakref.finalize(self, _give_back, device, num_bytes)
        self.num_io_tensors = len(self.ports)
        self.num_optimization_profiles = len(self.profiles)
        if is_rtx:
            self.create_runtime_config = lambda: RuntimeConfig(device)

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
        return [tuple(limits[d][which] if isinstance(d, str) else d for d in dims) for which in range(3)]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return SCRATCH_BYTES * (profile_index + 1)

    def create_execution_context(self, how: Any) -> Context:
        strategy = how.strategy if isinstance(how, RuntimeConfig) else how
        assert strategy is AllocationStrategy.USER_MANAGED
        if not self.is_rtx:
            return Context(self)
        assert isinstance(how, RuntimeConfig), "what is compiled would be lost"
        assert how.cache is not None, "what is compiled would be lost"
        is_eager = how.dynamic_shapes_kernel_specialization_strategy is SpecializationStrategy.EAGER
        return RtxContext(self, is_eager, how.cache)


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
        self.compiles_at_once = True
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
        elif not self.compiles_at_once:
            raise AssertionError("a graph is captured with the kernels that run while better ones are compiled")
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
            last = int(feeds["write_indices"].max()) + shapes["inputs_embeds"][1]
            assert last <= cache, f"a write up to {last} of {cache} positions, which TensorRT ignores"
        outputs = [name for name, port in ports.items() if not port.is_input]
        for name, value in zip(outputs, self.engine.session.run(outputs, feeds), strict=True):
            tensor(name)[...] = value

    def _refuse(self, reason: str) -> bool:
        self.device.errors_to(reason)  # type: ignore[attr-defined]
        return False


class RtxContext(Context):
    """What TensorRT for RTX adds."""

    def __init__(self, engine: Engine, compiles_at_once: bool, cache: RuntimeCache) -> None:
        super().__init__(engine)
        self.compiles_at_once = compiles_at_once
        self.cache = cache

    def execute_async_v3(self, stream_handle: int) -> bool:
        kernel = f"{self.engine.name} {sorted(self._named_lengths().items())}"
        if kernel not in self.cache.kernels:
            self.cache.kernels.add(kernel)
            self.device.compiled.append(kernel)
        return super().execute_async_v3(stream_handle)

    def is_stream_capturable(self, stream: int) -> bool:
        return self.device.can_capture


def _give_back(device: Device, num_bytes: int) -> None:
    device.engine_bytes -= num_bytes


def _port(value: onnx.ValueInfoProto, is_input: bool, has_rows: bool) -> Port:
    """An engine for one slot has one row of the decoder's batch."""
    tensor = value.type.tensor_type
    data_type, dtype = TYPES[tensor.elem_type]
    dims = tuple(1 if d.dim_param == BATCH and not has_rows else d.dim_param or d.dim_value for d in tensor.shape.dim)
    return Port(data_type, dtype, dims, is_input)


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


def add_engines(bundle: Path, changes: Callable[[dict[str, Any]], None] | None = None, **facts: Any) -> None:
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
            "profiles": profiles(manifest, fact),
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
