"""The physical limit that a decode step is held against: the bandwidth of the memory its weights lie in."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from varco_runtime.backends.cuda.driver import time_copies
from varco_runtime.bench import bandwidth
from varco_runtime.errors import BackendError

DEVICE_BUFFER_BYTES = 256 << 20
_DEVICE_COPIES, _COPIES_AT_ONCE = 20, 4


@dataclass(frozen=True, slots=True)
class Limit:
    """A measured bandwidth.

    Args:
        how: What was measured, for people.
        bytes_per_s: The best pass.
        median_bytes_per_s: The median pass.
        passes: How many there were.
        threads: How many threads took part in each.
        buffer_bytes: The size of what was read or copied.
    """

    how: str
    bytes_per_s: float
    median_bytes_per_s: float
    passes: int
    threads: int
    buffer_bytes: int


def measure_limit(device: str, threads: int, seconds: float) -> Limit | str:
    """Measure the bandwidth of the memory that weights lie in.

    Args:
        device: `cpu` reads the host's memory; anything else copies within the first GPU's.
        threads: Threads that read the host's memory at once.
        seconds: How long they read it.

    Returns:
        The limit. Where it cannot be measured, the reason in one line: a benchmark without its ceiling is still one.
    """
    return _host(threads, seconds) if device == "cpu" else _device()


def _host(threads: int, seconds: float) -> Limit | str:
    try:
        measured = bandwidth.measure(threads, seconds)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return f"The memory's bandwidth was not measured: {type(error).__name__} in a process of its own."
    return Limit(
        "reading host memory",
        measured["best"],
        measured["median"],
        measured["passes"],
        measured["threads"],
        measured["buffer_bytes"],
    )


def _device() -> Limit | str:
    """Copy one buffer of the GPU's memory to another, by the driver alone, which every bundle for a GPU needs.

    A copy reads and writes every byte, so each counts twice.
    """
    try:
        times = time_copies(DEVICE_BUFFER_BYTES, _COPIES_AT_ONCE, _DEVICE_COPIES)
    except BackendError as error:
        return f"The device's bandwidth was not measured: {error}"
    rates = sorted(2 * _COPIES_AT_ONCE * DEVICE_BUFFER_BYTES / seconds for seconds in times)
    return Limit(
        "copying device memory (read and write)",
        rates[-1],
        rates[len(rates) // 2],
        len(rates),
        1,
        DEVICE_BUFFER_BYTES,
    )
