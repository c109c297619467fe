"""onnxruntime with its CUDA provider: found, prepared, or refused in one line.

Nothing is imported before it is asked for. The libraries of CUDA are looked for next to the nvidia wheels, which an
installed torch brings too, so that no environment variable is needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import io
import os
import re
from pathlib import Path
from typing import Any

from varco_runtime.backends.cuda.driver import GpuFacts
from varco_runtime.bundle.graph_contract import SILENT
from varco_runtime.bundle.manifest import Manifest
from varco_runtime.errors import BackendError
from varco_runtime.extras import install_command, reinstall_command
from varco_runtime.system.libraries import import_onnxruntime

PROVIDER = "CUDAExecutionProvider"
LEAST_CUDA = (13, 0)
"""What the driver must run: onnxruntime-gpu and the libraries of the extra are made for CUDA 13."""
LEAST_CAPABILITY = {"fp32": (7, 5), "fp16": (7, 5), "bf16": (8, 0), "fp8": (8, 0)}
"""CUDA 13 has no code for GPUs before 7.5; those before 8.0 have no bf16, and FP8's operator is not made for them."""
WITHOUT_CODE = (10, 11)
"""Major versions of compute capability for which onnxruntime-gpu 1.31 holds no code, nor any to be translated."""
_XQA = "ORT_ENABLE_XQA"


def check_gpu(gpu: GpuFacts) -> None:
    """Refuse a driver that is too old, or a GPU without code for it. Raises `BackendError`."""
    if gpu.cuda_version < LEAST_CUDA:
        got, expected = (".".join(map(str, version)) for version in (gpu.cuda_version, LEAST_CUDA))
        raise BackendError(
            f"The NVIDIA driver supports CUDA {got}, expected {expected} or later. Update the driver, or export for "
            "the CPU: varco export CHECKPOINT BUNDLE --device cpu"
        )
    major, minor = gpu.capability
    if major in WITHOUT_CODE:
        raise BackendError(
            f"{gpu.name} has compute capability {major}.{minor}, for which onnxruntime-gpu has no code, expected 7.5, "
            "8.x, 9.0 or 12.x. Use another GPU, or export with --device tensorrt."
        )


def check_capability(gpu: GpuFacts, manifest: Manifest) -> None:
    """Refuse what `check_gpu` does, and a GPU that cannot compute as the bundle does. Raises `BackendError`."""
    check_gpu(gpu)
    decoder = manifest.decoder
    kind = "fp8" if "fp8" in decoder.precision else decoder.compute
    least = LEAST_CAPABILITY[kind]
    if gpu.capability < least:
        major, minor = gpu.capability
        raise BackendError(
            f"{gpu.name} has compute capability {major}.{minor}, a bundle in {kind} needs {least[0]}.{least[1]} or "
            f"later. {_advice(gpu, decoder.precision)}"
        )


def _advice(gpu: GpuFacts, precision: str) -> str:
    """Say how to export for a GPU that is too old: what is rounded already is not to be rounded again."""
    weights, _, head = precision.partition(", head ")
    if gpu.capability < LEAST_CAPABILITY["fp16"]:
        return "Use a newer GPU."
    if weights.startswith("fp8 ("):
        return "Export the checkpoint that this one was quantised from."
    if weights.startswith("int"):
        return f"Export again with --vision fp16{' --lm-head fp16' if 'fp8' in head else ''}, which keeps the integers."
    return "Export with --decoder fp16."


def load_onnxruntime() -> tuple[Any, list[str]]:
    """Return onnxruntime with CUDA, and the names of the CUDA libraries that were not found.

    What is missing shows only when a session is made: a library may also come from elsewhere.
    Raises `MissingExtraError` or `BackendError`.
    """
    os.environ.setdefault(_XQA, "1")  # read when attention kernels are made; 0 in the environment stays 0
    ort = import_onnxruntime("Running a bundle on CUDA", "cuda")
    if PROVIDER not in ort.get_available_providers():
        raise BackendError(
            f"The installed onnxruntime {ort.__version__} is the build without CUDA, expected onnxruntime-gpu. Run: "
            f"{reinstall_command('cuda')}"
        )
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it cannot find
        ort.preload_dlls()
    ort.set_default_logger_severity(SILENT)  # it warns of its own defaults, six times at every loading
    _take_no_more_than_asked()
    missed = dict.fromkeys(Path(path).name for path in re.findall(r"Failed to load (\S+?):", said.getvalue()))
    return ort, [name for name in missed if not _load_from_elsewhere(name)]


def _load_from_elsewhere(name: str) -> bool:
    """Load a library of the nvidia wheels or a torch that lie in another folder of packages than onnxruntime."""
    for package, pattern in (("nvidia", f"*/lib/{name}"), ("torch", f"lib/{name}")):
        found = importlib.util.find_spec(package)
        for folder in (found.submodule_search_locations or []) if found else []:
            for path in sorted(Path(folder).glob(pattern)):
                with contextlib.suppress(OSError):
                    ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
                    return True
    return False


def _take_no_more_than_asked() -> None:
    """Bound the arena of the process, for buffers, which would take twice as much each time it grows.

    It keeps what it took: a model that is loaded after another has gone finds its memory there. Where a later
    onnxruntime lacks the setting, only memory is lost.
    """
    state = importlib.import_module("onnxruntime.capi._pybind_state")
    choose = getattr(state, "set_arena_extend_strategy", None)
    if choose is not None:
        choose(state.ArenaExtendStrategy.kSameAsRequested)


def runs_on_cuda(session: Any) -> bool:
    """Tell whether a session uses the GPU: onnxruntime falls back to the CPU in silence when a library is missing."""
    return bool(session.get_providers()[:1] == [PROVIDER])


def libraries_missing(names: list[str]) -> BackendError:
    """Return what to say where CUDA's libraries are not found; `names` are those that `load_onnxruntime` missed."""
    listed = f" ({', '.join(names)})" if names else ""
    return BackendError(
        f"onnxruntime could not load its CUDA provider: libraries of CUDA 13 are missing{listed}. Install them with: "
        f"{install_command('cuda')}, or a torch for CUDA 13 beside it"
    )
