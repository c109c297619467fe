"""CUDA as the runtime sees it, without a GPU: a double of cuda-python's calls.

Device memory is numpy arrays at made-up addresses, filled with NaN when allocated and with guard space around. Nothing
that is asked for on the stream happens before the host synchronises: what is read too early is old, what is overwritten
too early is lost.

What the real library leaves undefined or does silently is an error here: memory that is freed twice, while work is
under way or while a context works in it; addresses outside it; copies that overlap; a replay of a graph whose context
was touched after its capture.
"""

# ruff: noqa: N802, N803, N815  (the names are CUDA's)
from __future__ import annotations

import bisect
import ctypes
import dataclasses
import enum
import itertools
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
FIRST_ADDRESS = 0x2000_0000_0000
"""Where Linux maps nothing of a process by itself: programs lie near 0x5500..., libraries and arrays near 0x7F00...."""
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
    """A GPU, its driver, and what was asked of it.

    `asked` are the calls, `done` what the stream has done, `compiled` the kernels that were not in a cache.
    """

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
        self.compiled: list[str] = []
        self.memory: dict[int, Array] = {}
        self.pinned: dict[int, Array] = {}
        self.engine_bytes = 0
        self.streams: set[int] = set()
        self.stream_numbers = itertools.count(1000)
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self.queue: list[Work] = []
        self.recording: list[Work] | None = None
        self.is_spoilt = False
        self.contexts: weakref.WeakSet[Any] = weakref.WeakSet()
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
        stream = next(self._device.stream_numbers)  # never again that of a destroyed one
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
