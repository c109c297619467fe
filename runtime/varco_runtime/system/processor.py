"""The processor: how many cores this process may use, and which instructions it has."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path


def usable_cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores by the process's affinity, or a container's share of time where that is less; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        return min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # ValueError: the quota is "max"
        return cores


@functools.cache
def overflows_in_pairs(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether onnxruntime's kernels for bytes times int8 add pairs in 16 bits, which overflow: x86 without VNNI.

    Its session option `x64quantprecision` asks for other kernels. It is for such processors alone: onnxruntime 1.31
    obeys it on others too, where it doubles the time of an int8 tile and changes nothing.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        return "vnni" not in cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return True
