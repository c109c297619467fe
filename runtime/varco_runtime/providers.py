"""What a bundle runs on, and why: its graphs or engines are made for one provider, so the bundle decides."""

from __future__ import annotations

from dataclasses import dataclass

from varco_runtime.backend import Backend
from varco_runtime.bundle import Bundle
from varco_runtime.errors import BackendError, UsageError

PROVIDERS = ("auto", "cpu", "cuda", "tensorrt")
_NAMES = {"cpu": "the CPU", "cuda": "CUDA", "tensorrt": "TensorRT"}


@dataclass(frozen=True, slots=True)
class Provider:
    """A backend, and one line for people: `cpu (the bundle was exported for the CPU)`."""

    backend: Backend
    line: str


def check_provider(name: str) -> None:
    """Raise `UsageError` for a provider that is unknown or not in this version."""
    if name not in PROVIDERS:
        raise UsageError(f"The provider {name!r} is unknown. Expected one of: {', '.join(PROVIDERS)}.")
    if name == "cuda":
        raise UsageError("The provider 'cuda' is not in this version. Use tensorrt on an NVIDIA GPU, or cpu.")


def open_provider(bundle: Bundle, name: str, max_context: int | None, threads: int | None) -> Provider:
    """Load a checked bundle on the provider called `name`; `auto` takes the one it was exported for.

    Graphs for TensorRT use no operator that is fast on a CPU, so they are refused there rather than run for minutes.
    `max_context` None is all the bundle or its engines allow. `threads` are the CPU's. Raises `BackendError`.
    """
    device = bundle.manifest.device
    if device not in ("cpu", "tensorrt"):
        raise BackendError(f"The bundle was exported for {device}, which is not in this version. {_export('cpu')}")
    if name not in ("auto", device):
        raise BackendError(f"The bundle was exported for {_NAMES[device]}, got --provider {name}. {_export(name)}")
    why = "as asked" if name == device else f"the bundle was exported for {_NAMES[device]}"
    if device == "cpu":
        from varco_runtime.onnxruntime_backend import OnnxRuntimeBackend

        return Provider(OnnxRuntimeBackend(bundle, max_context or bundle.manifest.max_context, threads), f"cpu ({why})")
    from varco_runtime.tensorrt_backend import TensorRtBackend

    backend = TensorRtBackend(bundle, max_context)
    return Provider(backend, f"tensorrt ({why}, and its engines fit this {backend.target})")


def _export(device: str) -> str:
    return f"Make one that fits with: varco export CHECKPOINT BUNDLE --device {device}"
