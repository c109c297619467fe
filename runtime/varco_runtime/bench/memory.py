"""Memory: what this process took at most, and what a device has left."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from varco_runtime.backends.cuda.driver import find_gpu
from varco_runtime.backends.tensorrt.cuda_api import Cuda
from varco_runtime.errors import BackendError, MissingExtraError

_STATUS = Path("/proc/self/status")


def peak_memory_bytes() -> int | None:
    """Peak resident memory of this process, mapped files included; None where the system does not say.

    On Linux VmHWM, which begins with the program; `ru_maxrss` would begin with the process that started it.
    """
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_device_bytes(device: str) -> int | None:
    """Memory of the first GPU that nobody uses; None for `cpu`, and where no GPU can be asked."""
    if device == "cpu":
        return None
    if device == "cuda":
        try:
            return find_gpu().free_bytes
        except BackendError:
            return None
    try:
        cuda = Cuda()
    except (BackendError, MissingExtraError):
        return None
    try:
        return cuda.free_bytes()
    finally:
        cuda.close()
