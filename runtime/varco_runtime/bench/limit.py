"""The physical limit that a decode step is held against: the bandwidth of the memory its weights lie in."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from varco_runtime.backends.cuda.driver import time_copies
from varco_runtime.backends.tensorrt.cuda_api import Buffer, Cuda
from varco_runtime.bench import bandwidth
from varco_runtime.errors import BackendError, MissingExtraError

DEVICE_BUFFER_BYTES = 256 << 20
_DEVICE_COPIES, _COPIES_AT_ONCE = 20, 4
_HOW = "copying device memory (read and write)"


@dataclass(frozen=True, slots=True)
class Limit:
    """A measured bandwidth in bytes per second: the best pass, and the median one. `how` is for people."""

    how: str
    bytes_per_s: float
    median_bytes_per_s: float
    passes: int
    threads: int
    buffer_bytes: int


def measure_limit(device: str, threads: int, seconds: float) -> Limit | str:
    """The limit of `device`: reading the host's memory for `cpu`, for `seconds`, else a copy within the first GPU's.

    Returns the reason in one line where it cannot be measured, for a benchmark without its ceiling is still one.
    """
    if device == "cpu":
        return _host(threads, seconds)
    return _through_driver() if device == "cuda" else _device()


def _host(threads: int, seconds: float) -> Limit | str:
    try:
        found = bandwidth.measure(threads, seconds)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return f"The memory's bandwidth was not measured: {type(error).__name__} in a process of its own."
    return Limit(
        "reading host memory",
        found["best"],
        found["median"],
        found["passes"],
        found["threads"],
        found["buffer_bytes"],
    )


def _through_driver() -> Limit | str:
    """A copy as `copy_bandwidth` measures it, without cuda-python, which a bundle for CUDA does without."""
    try:
        times = time_copies(DEVICE_BUFFER_BYTES, _COPIES_AT_ONCE, _DEVICE_COPIES)
    except BackendError as error:
        return f"The device's bandwidth was not measured: {error}"
    rates = sorted(2 * _COPIES_AT_ONCE * DEVICE_BUFFER_BYTES / seconds for seconds in times)
    return Limit(_HOW, rates[-1], rates[len(rates) // 2], len(rates), 1, DEVICE_BUFFER_BYTES)


def _device() -> Limit | str:
    try:
        cuda = Cuda()
    except (BackendError, MissingExtraError) as error:
        return f"The device's bandwidth was not measured: {error}"
    try:
        return copy_bandwidth(cuda)
    except BackendError as error:
        return f"The device's bandwidth was not measured: {error}"
    finally:
        cuda.close()


def copy_bandwidth(cuda: Cuda, clock: Callable[[], float] = time.perf_counter) -> Limit | str:
    """Copy one buffer of the device to another. A copy reads and writes every byte, so each counts twice."""
    buffers = [cuda.allocate(DEVICE_BUFFER_BYTES) for _ in range(2)]
    source, target = buffers
    if source is None or target is None:
        return f"The device's bandwidth was not measured: {cuda.name} has no {2 * DEVICE_BUFFER_BYTES >> 20} MiB free."
    _copy(cuda, target, source, 1, clock)  # the first one also sets things up
    rates = sorted(_copy(cuda, target, source, _COPIES_AT_ONCE, clock) for _ in range(_DEVICE_COPIES))
    middle = rates[len(rates) // 2]
    return Limit(_HOW, rates[-1], middle, len(rates), 1, DEVICE_BUFFER_BYTES)


def _copy(cuda: Cuda, target: Buffer, source: Buffer, times: int, clock: Callable[[], float]) -> float:
    """Bytes per second of `times` copies in a row, so that one wait is shared by several."""
    cuda.synchronize()
    started = clock()
    for _ in range(times):
        cuda.copy(target, source)
    cuda.synchronize()
    return 2 * times * source.num_bytes / (clock() - started)
