"""How fast this machine's memory can be read: the ceiling of decoding, which reads every weight once per token.

    python -P bandwidth.py --seconds 1.5     one JSON line

Several threads read an array much larger than the last-level cache with numpy reductions, which release the GIL. Two
kernels take turns, because which one keeps the memory busy differs between processors: the sum of 64-bit integers (the
lightest loop numpy vectorises) and BLAS's dot product of a vector with itself (which reads it once from memory). The
best pass counts as the ceiling: anything else on the machine can only slow a pass down.

Runs in a process of its own, so that neither the array nor the threads become part of what is measured afterwards.
Therefore this file imports nothing of the package.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MIN_BUFFER_BYTES = 256 << 20
MAX_BUFFER_BYTES = 1 << 30
CACHES = 8
"""The array is this many times the last-level cache, so that little of a pass comes from the last one."""
UNKNOWN_CACHE_BYTES = 32 << 20
_TIMEOUT_S = 60
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def last_level_cache_bytes(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Return the size of the largest cache that the first processor sees; 32 MiB where the system does not say."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = []
    for path in root.glob("index*/size"):
        try:
            text = path.read_text().strip()
            sizes.append(int(text[:-1]) * units[text[-1]])
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return max(sizes, default=UNKNOWN_CACHE_BYTES)


def read_bandwidth(buffer_bytes: int, threads: int, seconds: float) -> dict[str, Any]:
    """Read an array over and over, with both kernels in turn.

    Args:
        buffer_bytes: Its size.
        threads: How many threads share it out.
        seconds: For how long; once in any case.

    Returns:
        `best` and `median` of the passes in bytes per second, `passes`, `threads` and `buffer_bytes`.
    """
    import numpy as np

    # Written, so that every page is there and its own; as floats all ones, since denormal numbers are slow to multiply.
    words = np.full(buffer_bytes // 8, 0x3F800000_3F800000, dtype=np.uint64)
    kernels: tuple[tuple[Callable[[Any], Any], Any], ...] = (
        (np.add.reduce, np.array_split(words, threads)),
        (lambda part: np.dot(part, part), np.array_split(words.view(np.float32), threads)),
    )
    rates: list[float] = []
    with ThreadPoolExecutor(threads) as pool:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or not rates:
            for read, parts in kernels:
                started = time.perf_counter()
                list(pool.map(read, parts))
                rates.append(words.nbytes / (time.perf_counter() - started))
    return {
        "best": max(rates),
        "median": statistics.median(rates),
        "passes": len(rates),
        "threads": threads,
        "buffer_bytes": words.nbytes,
    }


def measure(threads: int, seconds: float) -> dict[str, Any]:
    """Run `read_bandwidth` in a process of its own, over an array that suits this machine's caches.

    Raises:
        OSError: No process starts.
        subprocess.SubprocessError: It fails, or takes more than a minute.
        ValueError: It answers something else.
    """
    size = min(max(MIN_BUFFER_BYTES, CACHES * last_level_cache_bytes()), MAX_BUFFER_BYTES)
    # -P: this folder's names must not stand in front of the standard library's.
    command = [sys.executable, "-P", __file__, "--threads", str(threads), "--seconds", str(seconds)]
    command += ["--bytes", str(size)]
    # One BLAS thread in each of ours.
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S, env={**os.environ, **_ONE_THREAD}
    )
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def _main() -> None:
    parser = argparse.ArgumentParser(description="Measure the bandwidth of reading memory.")
    parser.add_argument("--bytes", type=int, default=MIN_BUFFER_BYTES)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=1.5)
    options = parser.parse_args()
    print(json.dumps(read_bandwidth(options.bytes, options.threads, options.seconds)))


if __name__ == "__main__":
    _main()
