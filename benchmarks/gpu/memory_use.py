"""The most memory that a process took of its device."""

from __future__ import annotations

from varco_runtime.backends.cuda.driver import find_gpu
from varco_runtime.system.memory import peak_memory_bytes


class MemoryUse:
    """The driver's free memory before anything is loaded, less the least that was found after a measurement.

    Sampled between the measurements: a question to the driver while a step is captured could be a prohibited call.
    Neither onnxruntime nor torch gives memory back to the driver by itself, so what is in use after a measurement is
    the most that its runs needed; what loading takes and gives back again is not seen. It counts what any
    process takes meanwhile, and not the CUDA context, which is there at the first question. On the CPU it is the peak
    resident memory of this process.
    """

    def __init__(self, provider: str) -> None:
        self._on_gpu = provider == "cuda"
        self._before = find_gpu().free_bytes if self._on_gpu else 0
        self._peak_bytes: int | None = None

    def sample(self) -> int | None:
        """The peak up to now in bytes; None where the system does not say."""
        if self._on_gpu:
            self._peak_bytes = max(self._peak_bytes or 0, self._before - find_gpu().free_bytes)
        else:
            self._peak_bytes = peak_memory_bytes()
        return self._peak_bytes
