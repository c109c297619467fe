"""What a bundle runs on, and why: its graphs or engines are made for one provider, so the bundle decides.

`auto` takes what the bundle was made for; a bundle for CUDA falls back to the CPU where no GPU can be used and its
operators allow it, and says so. A bundle for the CPU runs on OpenVINO too, if that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from varco_runtime.backend import Backend
from varco_runtime.backends.openvino.settings import OpenVinoSettings
from varco_runtime.backends.slots import Slots
from varco_runtime.bundle.opening import Bundle
from varco_runtime.errors import BackendError, UsageError

PROVIDERS = ("auto", "cpu", "cuda", "tensorrt", "openvino")
_NAMES = {"cpu": "the CPU", "cuda": "CUDA", "tensorrt": "TensorRT"}


@dataclass(frozen=True, slots=True)
class Provider:
    """A backend, one line for people: `cpu (the bundle was exported for the CPU)`, and how many answers it takes."""

    backend: Backend
    line: str
    slots: Slots


def check_provider(name: str) -> None:
    """Raise `UsageError` for a provider that is unknown."""
    if name not in PROVIDERS:
        raise UsageError(f"The provider {name!r} is unknown. Expected one of: {', '.join(PROVIDERS)}.")


def open_provider(
    bundle: Bundle,
    name: str,
    max_context: int | None,
    threads: int | None,
    slots: int | str = 1,
    openvino: OpenVinoSettings | None = None,
) -> Provider:
    """Load a checked bundle on the provider called `name`; `auto` takes the one it was exported for.

    Graphs for TensorRT use no operator that is fast on a CPU, so they are refused there rather than run for minutes.
    `max_context` None is all the bundle or its engines allow. `threads` are the CPU's, `openvino` is for that provider
    alone. `slots` are the answers at once, a number or `auto`. Raises `BackendError`, and `UsageError` for more slots
    than there can be.
    """
    device = bundle.manifest.device
    if name == "openvino":
        return _open_openvino(bundle, max_context, threads, openvino, slots)
    if device == "cuda":
        return _open_cuda(bundle, name, max_context, threads, slots)
    if name not in ("auto", device):
        raise _mismatch(device, name)
    why = _why(device, name)
    if device == "cpu":
        from varco_runtime.backends.cpu.backend import OnnxRuntimeBackend

        host = OnnxRuntimeBackend(bundle, max_context or bundle.manifest.max_context, threads, slots)
        return Provider(host, f"cpu ({why})", host.slots)
    from varco_runtime.backends.tensorrt.backend import TensorRtBackend

    backend = TensorRtBackend(bundle, max_context, slots)
    return Provider(backend, f"tensorrt ({why}, and its engines fit this {backend.target})", backend.slots)


def _open_openvino(
    bundle: Bundle, max_context: int | None, threads: int | None, settings: OpenVinoSettings | None, slots: int | str
) -> Provider:
    """OpenVINO, which reads bundles for the CPU."""
    if bundle.manifest.device != "cpu":
        raise BackendError(
            f"The bundle was exported for {_NAMES[bundle.manifest.device]}, got the provider 'openvino', which runs "
            f"bundles for the CPU. {_export('cpu')}"
        )
    from varco_runtime.backends.openvino.backend import OpenVinoBackend

    backend = OpenVinoBackend(bundle, max_context or bundle.manifest.max_context, threads, settings, slots)
    return Provider(backend, "openvino (as asked)", backend.slots)


def _open_cuda(bundle: Bundle, name: str, max_context: int | None, threads: int | None, slots: int | str) -> Provider:
    """The GPU; the CPU where it was asked for, or where no GPU can be used and nobody insists on one."""
    from varco_runtime.backends.cuda.backend import CudaBackend
    from varco_runtime.backends.cuda.on_cpu import cpu_lacks

    if name == "tensorrt":
        raise _mismatch("cuda", name)
    reason = "as asked"
    if name != "cpu":
        try:
            gpu = CudaBackend(bundle, max_context, slots=slots)
            return Provider(gpu, f"cuda ({_why('cuda', name)})", gpu.slots)
        except BackendError as error:  # a missing onnxruntime, which the CPU would lack too, is not caught
            if name == "cuda":
                raise
            reason = str(error)
    lacking = cpu_lacks(bundle)
    if lacking is not None:
        # What is wrong with the GPU ends with its own advice, often this one.
        rest = f". {_export('cpu')}" if name == "cpu" else f", nor can the GPU: {reason}"
        raise BackendError(f"The CPU cannot run this bundle, it has no kernels for {lacking}{rest}")
    backend = CudaBackend(bundle, max_context, "cpu", threads, slots)
    line = f"cpu, slowly (the bundle was exported for CUDA, which cannot be used: {reason})"
    if name == "cpu":
        line = "cpu (as asked; the bundle was exported for CUDA, whose fp16 is slow here)"
    return Provider(backend, line, backend.slots)


def _why(device: str, name: str) -> str:
    return "as asked" if name == device else f"the bundle was exported for {_NAMES[device]}"


def _mismatch(device: str, name: str) -> BackendError:
    return BackendError(f"The bundle was exported for {_NAMES[device]}, got the provider {name!r}. {_export(name)}")


def _export(device: str) -> str:
    return f"Make one that fits with: varco export CHECKPOINT BUNDLE --device {device}"
