"""What every benchmark says and does in the same way: the machine, medians, read bandwidth."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from varco_runtime.bench.bandwidth import measure
from varco_runtime.system.processor import CPUINFO, cpu_name, usable_cores

_INSTRUCTION_SETS = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "VNNI": "avx512_vnni",
    "AVX-VNNI": "avx_vnni",
    "BF16": "avx512_bf16",
    "AMX": "amx_tile",
}
"""By their usual names: what Linux calls them."""


def describe_machine() -> dict[str, Any]:
    """Processor, usable cores, memory, system, Python: what a figure needs beside it."""
    return {
        "processor": cpu_name(),
        "instructions": instruction_sets(),
        "usable_cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": round(psutil.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
    }


def instruction_sets(cpuinfo: Path = CPUINFO) -> list[str]:
    """Return which of the sets that decide on these products' speed the processor has; none where it cannot be told."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    flags = set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())
    return [name for name, flag in _INSTRUCTION_SETS.items() if flag in flags]


def spread(values: Iterable[float], digits: int = 4) -> dict[str, float]:
    """Median, least and largest."""
    ordered = sorted(values)
    chosen = {"median": statistics.median(ordered), "min": ordered[0], "max": ordered[-1]}
    return {name: round(value, digits) for name, value in chosen.items()}


def line_fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Least squares `y = intercept + slope x`, and r2, the share of y's variance that the line explains."""
    slope, intercept = np.polyfit(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64), 1)
    rest = np.asarray(y) - (intercept + slope * np.asarray(x))
    total = np.asarray(y) - np.mean(y)
    r2 = 1 - float(rest @ rest) / float(total @ total) if float(total @ total) else 1.0
    return {"slope": float(slope), "intercept": float(intercept), "r2": r2}


def power_fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Least squares `log y = log factor + exponent log x`."""
    fit = line_fit(np.log(x).tolist(), np.log(y).tolist())
    return {"exponent": fit["slope"], "factor": float(np.exp(fit["intercept"])), "r2": fit["r2"]}


def read_bandwidth(threads: int, seconds: float = 1.0) -> float:
    """Bytes per second that `threads` threads together read from memory, the best of several passes.

    The loop of `varco bench`, in a process of its own.
    """
    return float(measure(threads, seconds)["best"])
