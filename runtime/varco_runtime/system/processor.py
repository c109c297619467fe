"""The processors: cores that this process may use, names and instructions, how busy they are, and NVIDIA's devices."""

from __future__ import annotations

import functools
import os
import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
STAT = Path("/proc/stat")


def usable_cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return the cores by the process's affinity, or a container's share of time where that is less; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        return min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # ValueError: the quota is "max"
        return cores


@functools.cache
def overflows_in_pairs(cpuinfo: Path = CPUINFO) -> bool:
    """Return whether onnxruntime's kernels for bytes times int8 add pairs in 16 bits, which overflow: x86 without VNNI.

    Its session option `x64quantprecision` asks for other kernels. It is for such processors alone: onnxruntime 1.31
    obeys it on others too, where it doubles the time of an int8 tile and changes nothing.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        return "vnni" not in cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return True


def cpu_name() -> str:
    """Return what the processor calls itself."""
    try:
        name = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        name = None
    return name[1] if name else platform.processor() or platform.machine()


@functools.cache
def cpu_kind() -> str:
    """Return what tells one kind of processor from another: its name and its instruction sets."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "CPU part", "Features")
    return "\n".join(dict.fromkeys(line for line in lines if line.split("\t")[0].strip() in wanted))


def busy_seconds(stat: Path = STAT) -> float | None:
    """Return the processor seconds of the whole machine since its start; None where the system does not say.

    The first line of /proc/stat counts ticks of user, nice, system, idle, iowait, irq, softirq, steal (proc(5)).
    """
    try:
        user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def nvidia_devices(folder: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """Return the names of NVIDIA's devices as their driver lists them."""
    names = []
    for path in sorted(folder.glob("*/information")):
        try:
            model = re.search(r"^Model:\s*(.+)$", path.read_text(), re.MULTILINE)
        except OSError:
            continue
        names.append(model[1].strip() if model else path.parent.name)
    return names
