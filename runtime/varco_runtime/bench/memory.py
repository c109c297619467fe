"""The memory that a device has left."""

from __future__ import annotations

from varco_runtime.backends.cuda.driver import find_gpu
from varco_runtime.backends.tensorrt.cuda_api import Cuda
from varco_runtime.errors import BackendError, MissingExtraError


def free_device_bytes(device: str) -> int | None:
    """Return the memory of the first GPU that nobody uses; None for `cpu`, and where no GPU can be asked."""
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
