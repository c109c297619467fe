"""The few CUDA calls the runtime makes, through cuda-python: memory, copies, one stream, one captured graph.

Everything is asynchronous and goes through one stream, so the device does it in the order it was asked for. The host
waits in `synchronize` alone, and reads what it asked to download only after that. Memory is freed in `close`, once, in
the reverse order of its making. The library is imported when a `Cuda` is made, never before.

The device is CUDA's first; `CUDA_VISIBLE_DEVICES` chooses another.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from varco_runtime.dtypes import Array
from varco_runtime.errors import BackendError
from varco_runtime.system.libraries import needs_extra

ALIGNMENT = 256
"""What TensorRT asks of every address; cudaMalloc gives it."""
_HOST_ALLOC_DEFAULT = 0
_GRAPH_DEFAULT = 0


@dataclass(frozen=True, slots=True)
class Buffer:
    """Device memory: an address and the bytes that may be used from there."""

    address: int
    num_bytes: int

    def part(self, offset_bytes: int, num_bytes: int) -> Buffer:
        """Some of it. What lies outside is a bug: the device would write there without a word."""
        assert 0 <= offset_bytes <= offset_bytes + num_bytes <= self.num_bytes, (
            f"Bug: bytes {offset_bytes}..{offset_bytes + num_bytes} of a buffer of {self.num_bytes}"
        )
        return Buffer(self.address + offset_bytes, num_bytes)


class Cuda:
    """The first device, one stream on it, and what was allocated there. Raises `BackendError` or `MissingExtraError`.

    `target` names the kind of device as engines do: `sm89` is compute capability 8.9.
    """

    def __init__(self) -> None:
        self._api = _load_cuda_python()
        self._success = self._api.cudaError_t.cudaSuccess
        self._check_device()
        self._call("cudaSetDevice", 0)
        facts = self._call("cudaGetDeviceProperties", 0)
        self.name: str = facts.name.decode(errors="replace").strip("\0 ")
        self.target = f"sm{facts.major}{facts.minor}"
        self.is_integrated = bool(facts.integrated)
        """Whether the device shares the host's memory (Jetson), so that what is free is not known before it is asked
        for: the system's file cache makes way."""
        self._closing = ExitStack()
        self._is_closed = False
        no_wait = self._api.cudaStreamNonBlocking  # TensorRT slows down on the default stream
        self.stream: int = int(self._created("cudaStreamCreateWithFlags", "cudaStreamDestroy", no_wait))

    def _check_device(self) -> None:
        """One line that says which part is missing: the driver, a newer driver, or the device."""
        error, count = self._api.cudaGetDeviceCount()
        if error == self._success and count > 0:
            return
        _, driver = self._api.cudaDriverGetVersion()
        _, needed = self._api.cudaRuntimeGetVersion()
        if not driver:
            got = "no NVIDIA driver was found on this machine"
            step = "Install the driver"
        elif driver // 1000 < needed // 1000:
            got = f"the NVIDIA driver supports CUDA {_version(driver)}, cuda-python needs {_version(needed)}"
            step = f"Update the driver, or install cuda-python {driver // 1000}"
        else:
            got = f"CUDA found no device ({self._reason(error)})"
            step = "Check nvidia-smi and CUDA_VISIBLE_DEVICES"
        raise BackendError(
            f"TensorRT engines run on an NVIDIA GPU, but {got}. {step}, or run on the CPU with a bundle made by: "
            "varco export CHECKPOINT BUNDLE --device cpu"
        )

    # -- memory -------------------------------------------------------------------------------------------------------

    def free_bytes(self) -> int:
        """Device memory that nobody uses."""
        free, _ = self._call("cudaMemGetInfo")
        return int(free)

    def allocate(self, num_bytes: int) -> Buffer | None:
        """Device memory with undefined content, or None if there is not enough."""
        error, address = self._api.cudaMalloc(max(num_bytes, ALIGNMENT))
        if error == self._api.cudaError_t.cudaErrorMemoryAllocation:
            self._api.cudaGetLastError()  # it would be reported again by whoever asks next
            return None
        self._check("cudaMalloc", error)
        self._closing.callback(self._api.cudaFree, address)
        return Buffer(int(address), num_bytes)

    def pinned(self, shape: tuple[int, ...], dtype: type[np.generic]) -> Array:
        """Host memory that the device reads and writes by itself, as an array."""
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = self._created("cudaHostAlloc", "cudaFreeHost", num_bytes, _HOST_ALLOC_DEFAULT)
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(int(address)))
        return memory.view(dtype).reshape(shape)

    # -- asynchronous work --------------------------------------------------------------------------------------------

    def upload(self, target: Buffer, array: Array) -> None:
        """Copy a host array to the device and wait: the array is the caller's again."""
        self.upload_pinned(target, np.ascontiguousarray(array))
        self.synchronize()

    def upload_pinned(self, target: Buffer, array: Array) -> None:
        """Copy to the device from memory that stays as it is until the next `synchronize`."""
        assert array.flags.c_contiguous, "Bug: a copy takes contiguous memory"
        self._copy(target.part(0, array.nbytes).address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, array: Array, source: Buffer) -> None:
        """Copy to a host array, best a pinned one, which holds the values after the next `synchronize`."""
        assert array.flags.c_contiguous, "Bug: a copy takes contiguous memory"
        self._copy(array.ctypes.data, source.part(0, array.nbytes).address, array.nbytes, "cudaMemcpyDeviceToHost")

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Copy all of `source` to the beginning of `target`, both on the device."""
        num_bytes = source.num_bytes
        self._copy(target.part(0, num_bytes).address, source.address, num_bytes, "cudaMemcpyDeviceToDevice")

    def copy_rows(
        self, target: Buffer, target_pitch: int, source: Buffer, source_pitch: int, width: int, rows: int
    ) -> None:
        """Copy `rows` rows of `width` bytes on the device; a pitch is the distance of two rows in bytes."""
        target = target.part(0, _span(target_pitch, width, rows))
        source = source.part(0, _span(source_pitch, width, rows))
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        args = (target.address, target_pitch, source.address, source_pitch, width, rows, kind, self.stream)
        self._call("cudaMemcpy2DAsync", *args)

    def fill(self, target: Buffer, value: int) -> None:
        """Set every byte."""
        if target.num_bytes:
            self._call("cudaMemsetAsync", target.address, value, target.num_bytes, self.stream)

    def fill_rows(self, target: Buffer, pitch: int, value: int, width: int, rows: int) -> None:
        """Set every byte of `rows` rows of `width` bytes."""
        target = target.part(0, _span(pitch, width, rows))
        if width:
            self._call("cudaMemset2DAsync", target.address, pitch, value, width, rows, self.stream)

    def synchronize(self) -> None:
        """Wait until everything asked for has been done. A fault of any of it is raised here."""
        self._call("cudaStreamSynchronize", self.stream)

    def _copy(self, target: int, source: int, num_bytes: int, kind: str) -> None:
        if num_bytes:
            kind = getattr(self._api.cudaMemcpyKind, kind)
            self._call("cudaMemcpyAsync", target, source, num_bytes, kind, self.stream)

    # -- graphs -------------------------------------------------------------------------------------------------------

    def capture(self, enqueue: Callable[[], None]) -> Any | None:
        """Record what `enqueue` asks for without doing it; None if something in it cannot be recorded."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            enqueue()
            failed = False
        except BackendError:
            failed = True
        finally:
            error, graph = self._api.cudaStreamEndCapture(self.stream)
        if failed or error != self._success:
            self._api.cudaGetLastError()
            return None
        error, executable = self._api.cudaGraphInstantiate(graph, _GRAPH_DEFAULT)
        self._call("cudaGraphDestroy", graph)
        if error != self._success:
            self._api.cudaGetLastError()
            return None
        return executable

    def launch(self, graph: Any) -> None:
        """Do what was recorded, with what the same addresses hold now."""
        self._call("cudaGraphLaunch", graph, self.stream)

    def forget(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)

    # -- the end ------------------------------------------------------------------------------------------------------

    def at_close(self, callback: Callable[[], object]) -> None:
        """Call this in `close`, before what was made earlier is freed."""
        self._closing.callback(callback)

    def close(self) -> None:
        """Wait for the device and free everything. A second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._api.cudaStreamSynchronize(self.stream)
            self._closing.close()

    # -- calls --------------------------------------------------------------------------------------------------------

    def _created(self, create: str, destroy: str, *args: Any) -> Any:
        handle = self._call(create, *args)
        self._closing.callback(getattr(self._api, destroy), handle)
        return handle

    def _call(self, name: str, *args: Any) -> Any:
        """The result of a call without its error code: nothing, one value or several. Raises `BackendError`."""
        error, *values = getattr(self._api, name)(*args)
        self._check(name, error)
        return values[0] if len(values) == 1 else tuple(values)

    def _check(self, name: str, error: Any) -> None:
        if error != self._success:
            raise BackendError(f"{name} failed on the GPU: {self._reason(error)}. Start again, and run: varco doctor")

    def _reason(self, error: Any) -> str:
        _, text = self._api.cudaGetErrorString(error)
        return str(text.decode(errors="replace"))


def _load_cuda_python() -> Any:
    with needs_extra("Running TensorRT engines on an NVIDIA GPU", "tensorrt"):
        return importlib.import_module("cuda.bindings.runtime")


def _span(pitch: int, width: int, rows: int) -> int:
    """Bytes from the first row's beginning to the last one's end."""
    assert rows > 0, f"Bug: {rows} rows"
    assert 0 <= width <= pitch, f"Bug: rows of {width} bytes, {pitch} apart"
    return (rows - 1) * pitch + width


def _version(number: int) -> str:
    """CUDA's 13040 is 13.4."""
    return f"{number // 1000}.{number % 1000 // 10}"
