"""A TensorRT engine: loaded, compared with what the bundle needs of it, and run.

TensorRT and TensorRT for RTX are one interface under two module names. An engine is a program: it runs on the version
that built it and on the kind of device it was built for, and is only loaded after `Bundle.open` has checked its hash.

Every way to run an engine is an `ExecutionContext` of its own, because a captured CUDA graph is only valid as long as
nobody touches the context it was captured from. All of them work in one scratch memory, one after the other on one
stream.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Any

from varco_runtime.backends.tensorrt.cuda_api import Buffer, Cuda
from varco_runtime.backends.tensorrt.kernel_cache import KernelCache
from varco_runtime.backends.tensorrt.library import PRODUCTS, error_log, import_builder, reason_of
from varco_runtime.bundle.manifest import EngineFacts
from varco_runtime.bundle.tensor import Tensor, described, first_difference
from varco_runtime.dtypes import ITEM_BYTES
from varco_runtime.errors import BackendError, BundleError


class Library:
    """TensorRT or TensorRT for RTX, and everything that was loaded with it. Raises `BackendError`."""

    def __init__(self, builder: str) -> None:
        self.builder = builder
        self.product = PRODUCTS[builder]
        self.module = import_builder(builder)
        self.version = str(self.module.__version__)
        self._errors: list[str] = []
        self._log = error_log(self.module, self._errors)  # TensorRT keeps no reference of its own
        self._runtime: Any = self.module.Runtime(self._log)
        self._loaded: list[Engine | ExecutionContext] = []

    def load(self, cuda: Cuda, path: Path, facts: EngineFacts, sha256: str) -> Engine:
        """Deserialise an engine, whose file has this hash: its weights go to the device."""
        self._errors.clear()
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            reason = self._errors[0] if self._errors else "no reason was given"
            raise BackendError(
                f"{self.product} {self.version} could not load {path}: {reason_of(reason)}. "
                "Build it again with: varco engines BUNDLE"
            )
        loaded = Engine(self, cuda, path.name, facts, engine, sha256)
        self._loaded.append(loaded)
        return loaded

    def keep(self, one_pass: ExecutionContext) -> None:
        """Release it before the engines."""
        self._loaded.append(one_pass)

    def last_error(self) -> str:
        """What TensorRT logged last, as one line."""
        return reason_of(self._errors[-1]) if self._errors else "no reason was given"

    def release(self) -> None:
        """Keep what was compiled, let go of contexts, then engines, then the library, while their memory is there."""
        for loaded in self._loaded:
            if isinstance(loaded, Engine):
                loaded.save_kernels()
        while self._loaded:
            self._loaded.pop().release()
        self._runtime = None


class Engine:
    """A loaded engine."""

    def __init__(self, library: Library, cuda: Cuda, file: str, facts: EngineFacts, handle: Any, sha256: str) -> None:
        self.library = library
        self.cuda = cuda
        self.file = file
        self.facts = facts
        self.handle = handle
        self._sha256 = sha256
        self._kernels: KernelCache | None = None
        self.tensors: dict[str, Tensor] = {}

    def check(self, expected: dict[str, Tensor]) -> None:
        """Compare names, types, shapes and places with the contract. Raises `BundleError` naming the first tensor."""
        found = {name: self._tensor(name) for name in self._names()}
        difference = first_difference(found, expected)
        if difference is not None:
            name, got, want = difference
            raise BundleError(
                f"{self.file} has {described(name, got)}, expected {described(name, want)}. "
                "Build the engines again with: varco engines BUNDLE"
            )
        self.tensors = expected
        for name in expected:
            self._check_alias(name)

    def _check_alias(self, name: str) -> None:
        """A cache's output is bound to its input's memory, which must not be another's in the engine's own view."""
        aliased = getattr(self.handle, "get_aliased_input_tensor", None)
        if aliased is None or not name.startswith("present."):
            return
        got, want = aliased(name), name.replace("present.", "past.")
        if got not in (None, want):
            raise BundleError(
                f"{self.file} updates {got} in place with {name}, expected {want}. "
                "Build the engines again with: varco engines BUNDLE"
            )

    def _names(self) -> list[str]:
        return [self.handle.get_tensor_name(index) for index in range(self.handle.num_io_tensors)]

    def _tensor(self, name: str) -> Tensor:
        module, handle = self.library.module, self.handle
        types = {
            module.DataType.FLOAT: "fp32",
            module.DataType.HALF: "fp16",
            module.DataType.BF16: "bf16",
            module.DataType.INT64: "int64",
            module.DataType.BOOL: "bool",
        }
        dtype = handle.get_tensor_dtype(name)
        shape = tuple("any" if length < 0 else length for length in handle.get_tensor_shape(name))
        is_input = handle.get_tensor_mode(name) == module.TensorIOMode.INPUT
        on_device = handle.get_tensor_location(name) == module.TensorLocation.DEVICE
        return Tensor(types.get(dtype, str(dtype)) + ("" if on_device else " on the host"), shape, is_input)

    def longest(self, name: str, axis: int, profile: int = 0) -> int:
        """The greatest length that a profile allows along one axis of an input."""
        _, _, greatest = self.handle.get_tensor_profile_shape(name, profile)
        return int(greatest[axis])

    @property
    def num_profiles(self) -> int:
        return int(self.handle.num_optimization_profiles)

    def scratch_bytes(self) -> int:
        """What a run needs at most besides weights, inputs and outputs."""
        return max(int(self.handle.get_device_memory_size_for_profile_v2(index)) for index in range(self.num_profiles))

    def create_context(self, is_captured: bool) -> Any:
        """An execution context without memory of its own, or None.

        TensorRT for RTX compiles kernels for a new shape in the background and runs slower ones meanwhile. A graph
        would keep the slow ones, so what is captured is compiled at once. All contexts share what is compiled.
        """
        module = self.library.module
        strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.library.builder != "tensorrt_rtx":
            return self.handle.create_execution_context(strategy)
        config = self.handle.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        specialisation = module.DynamicShapesKernelSpecializationStrategy
        if is_captured:
            config.dynamic_shapes_kernel_specialization_strategy = specialisation.EAGER
        if self._kernels is None:
            self._kernels = KernelCache(config, self._sha256)
        config.set_runtime_cache(self._kernels.handle)
        return self.handle.create_execution_context(config)

    def save_kernels(self) -> None:
        """Keep what was compiled for the next run."""
        if self._kernels is not None:
            self._kernels.save()

    def release(self) -> None:
        self._kernels = None
        self.handle = None


class ExecutionContext:
    """One way to run an engine: a profile, with its addresses and shapes. `is_captured`: for a CUDA graph."""

    def __init__(self, engine: Engine, scratch: Buffer, profile: int = 0, is_captured: bool = False) -> None:
        self._engine = engine
        self._cuda = engine.cuda
        self._bound: dict[str, Buffer] = {}
        self._context: Any = engine.create_context(is_captured)
        if self._context is None:
            raise BackendError(
                f"{engine.file} gave no execution context: {engine.library.last_error()}. Run: varco doctor"
            )
        self._done(self._context.set_optimization_profile_async(profile, self._cuda.stream), f"profile {profile}")
        self._context.set_device_memory(scratch.address, scratch.num_bytes)
        engine.library.keep(self)

    def bind(self, name: str, buffer: Buffer) -> None:
        """Where an input is read or an output written."""
        tensor = self._engine.tensors[name]
        if tensor.is_fixed:
            self._check_room(name, buffer, tensor.shape)
        self._done(self._context.set_tensor_address(name, buffer.address), f"an address for {name}")
        self._bound[name] = buffer

    def shape(self, name: str, *lengths: int) -> None:
        """The shape of an input from now on."""
        self._done(self._context.set_input_shape(name, lengths), f"the shape {list(lengths)} for {name}")

    def shape_of_rows(self, name: str, rows: int) -> None:
        """The rows of an input whose every other length is fixed; nothing to do where they are fixed too."""
        tensor = self._engine.tensors[name]
        if not tensor.is_fixed:
            self.shape(name, *(rows if isinstance(length, str) else length for length in tensor.shape))

    def run(self) -> None:
        """Ask the device for one pass. What it would write beyond a buffer is found here, before it does."""
        for name, tensor in self._engine.tensors.items():
            assert name in self._bound, f"Bug: {name} of {self._engine.file} has no address"
            if not tensor.is_fixed:
                self._check_room(name, self._bound[name], tuple(self._context.get_tensor_shape(name)))
        self._done(self._context.execute_async_v3(self._cuda.stream), "a pass")

    @property
    def is_capturable(self) -> bool:
        """Whether a CUDA graph can hold a pass with the shapes that are set; only TensorRT for RTX knows beforehand."""
        known = getattr(self._context, "is_stream_capturable", None)
        return known is None or bool(known(self._cuda.stream))

    def _check_room(self, name: str, buffer: Buffer, shape: tuple[Any, ...]) -> None:
        num_bytes = math.prod(shape) * ITEM_BYTES[self._engine.tensors[name].dtype]
        assert 0 <= num_bytes <= buffer.num_bytes, (
            f"Bug: {name} {list(shape)} of {self._engine.file} has {num_bytes} bytes, its buffer {buffer.num_bytes}"
        )

    def _done(self, is_done: bool, what: str) -> None:
        if not is_done:
            raise BackendError(
                f"{self._engine.file} refused {what}: {self._engine.library.last_error()}. Run: varco doctor"
            )

    def release(self) -> None:
        self._context = None
