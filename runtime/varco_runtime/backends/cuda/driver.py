"""The NVIDIA driver's own view of the GPU, before anything large is loaded: name, compute capability, free memory.

Called through ctypes, since the driver is there wherever a GPU works, and cuda-python need not be. The device is
CUDA's first; `CUDA_VISIBLE_DEVICES` chooses another.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from varco_runtime.errors import BackendError

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NAME_BYTES = 256
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE, which cuInit gives where none is there or visible


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU. `capability` is (9, 0) for an H200; sizes in bytes; `cuda_version` is the newest the driver runs."""

    name: str
    capability: tuple[int, int]
    free_bytes: int
    total_bytes: int
    cuda_version: tuple[int, int]

    @property
    def target(self) -> str:
        """Return the kind of device, as engines name it: `sm90`."""
        return f"sm{self.capability[0]}{self.capability[1]}"


def find_gpu() -> GpuFacts:
    """Return the first GPU. Raises `BackendError`: one line that says whether the driver or the device is missing."""
    driver, device = _open()
    version = ctypes.c_int()
    _check(driver, "cuDriverGetVersion", driver.cuDriverGetVersion(ctypes.byref(version)))
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _check(driver, "cuDeviceGetName", driver.cuDeviceGetName(name, _NAME_BYTES, device))
    capability = []
    for attribute in (_MAJOR, _MINOR):
        number = ctypes.c_int()
        _check(driver, "cuDeviceGetAttribute", driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device))
        capability.append(number.value)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with _primary_context(driver, device):  # the driver tells them of a context alone
        _check(driver, "cuMemGetInfo", driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
    return GpuFacts(
        name=name.value.decode(errors="replace"),
        capability=(capability[0], capability[1]),
        free_bytes=free.value,
        total_bytes=total.value,
        cuda_version=(version.value // 1000, version.value % 1000 // 10),
    )


def time_copies(
    num_bytes: int, copies: int, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Return seconds of `rounds` rounds of `copies` copies of so many bytes within the first GPU's memory.

    Raises `BackendError`.
    """
    driver, device = _open()
    with _primary_context(driver, device), ExitStack() as freeing:
        buffers = []
        for _ in range(2):
            buffer = ctypes.c_uint64()
            _check(driver, "cuMemAlloc", driver.cuMemAlloc_v2(ctypes.byref(buffer), ctypes.c_size_t(num_bytes)))
            freeing.callback(driver.cuMemFree_v2, buffer)
            buffers.append(buffer)

        def copy() -> None:
            copied = driver.cuMemcpyDtoDAsync_v2(buffers[0], buffers[1], ctypes.c_size_t(num_bytes), None)
            _check(driver, "cuMemcpyDtoDAsync", copied)

        def wait() -> float:
            _check(driver, "cuCtxSynchronize", driver.cuCtxSynchronize())
            return clock()

        copy()  # the first one also sets things up
        times = []
        for _ in range(rounds):
            started = wait()
            for _ in range(copies):
                copy()
            times.append(wait() - started)
    return times


def move_bytes(pieces: Iterable[tuple[int, int, int]]) -> None:
    """Copy pieces within the first GPU's memory, each (to, from, bytes), one after the other, and wait for them.

    Raises `BackendError`.
    """
    driver, device = _open()
    with _primary_context(driver, device):
        for target, source, num_bytes in pieces:
            addresses = ctypes.c_uint64(target), ctypes.c_uint64(source)
            copied = driver.cuMemcpyDtoDAsync_v2(*addresses, ctypes.c_size_t(num_bytes), None)
            _check(driver, "cuMemcpyDtoDAsync", copied)
        _check(driver, "cuStreamSynchronize", driver.cuStreamSynchronize(None))


def clear_bytes(pieces: Iterable[tuple[int, int]]) -> None:
    """Fill pieces of the first GPU's memory with zeros, each (where, bytes), and wait for them.

    Raises `BackendError`.
    """
    driver, device = _open()
    with _primary_context(driver, device):
        for address, num_bytes in pieces:
            filled = driver.cuMemsetD8Async(
                ctypes.c_uint64(address), ctypes.c_ubyte(0), ctypes.c_size_t(num_bytes), None
            )
            _check(driver, "cuMemsetD8Async", filled)
        _check(driver, "cuStreamSynchronize", driver.cuStreamSynchronize(None))


def _open() -> tuple[Any, Any]:
    """Open the driver, and its first device."""
    try:
        driver = _load()
    except OSError:
        raise BackendError(
            f"No NVIDIA driver was found ({_LIBRARY} cannot be loaded), expected one for CUDA 13. Install the driver, "
            "or export for the CPU: varco export CHECKPOINT BUNDLE --device cpu"
        ) from None
    status = driver.cuInit(0)
    count, device = ctypes.c_int(), ctypes.c_int()
    if status != _NO_DEVICE:
        _check(driver, "cuInit", status)
        _check(driver, "cuDeviceGetCount", driver.cuDeviceGetCount(ctypes.byref(count)))
    if count.value == 0:
        raise BackendError("The NVIDIA driver sees no GPU, expected one. Look at nvidia-smi and CUDA_VISIBLE_DEVICES.")
    _check(driver, "cuDeviceGet", driver.cuDeviceGet(ctypes.byref(device), 0))
    return driver, device


@contextmanager
def _primary_context(driver: Any, device: Any) -> Iterator[None]:
    """Hold the context that onnxruntime uses too, current on this thread meanwhile."""
    context = ctypes.c_void_p()
    retained = driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    _check(driver, "cuDevicePrimaryCtxRetain", retained)
    try:
        _check(driver, "cuCtxPushCurrent", driver.cuCtxPushCurrent_v2(context))
        try:
            yield
        finally:
            driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)


def _load() -> Any:
    return ctypes.CDLL(_LIBRARY)


def _check(driver: Any, call: str, status: int) -> None:
    if status == 0:
        return
    text = ctypes.c_char_p()
    driver.cuGetErrorString(status, ctypes.byref(text))
    reason = text.value.decode(errors="replace") if text.value else "no reason given"
    raise BackendError(
        f"The NVIDIA driver failed in {call} with error {status} ({reason}). Look at nvidia-smi, then run: varco doctor"
    )
