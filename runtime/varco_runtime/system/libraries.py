"""Libraries that an extra brings: what is wrong where one cannot be imported.

A library that is not installed is missing; one that is there and fails is broken, and installing its extra again would
change nothing. An interrupt is neither, though libraries turn it into an ImportError while they load.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from varco_runtime.errors import BrokenExtraError, MissingExtraError, first_line

MODULES = {
    "cpu": ("onnxruntime",),
    "cuda": ("onnxruntime",),
    "export": ("onnx", "ml_dtypes", "huggingface_hub"),
    "quantize": ("torch", "transformers", "compressed_tensors", "onnx", "ml_dtypes"),
    "tensorrt": ("cuda",),
    "openvino": ("openvino",),
    "video": ("av",),
}
"""By extra, the modules that this project imports of it."""


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Say what is wrong with the packages of `extra` where importing them, inside this context, fails.

    Args:
        what: The beginning of the message: `Exporting`.
        extra: A key of `MODULES`.

    Raises:
        MissingExtraError: One of the extra's modules is not installed.
        BrokenExtraError: They are, and one of them, or what it needs, cannot be imported.
        KeyboardInterrupt: Whoever waited interrupted it.
    """
    try:
        yield
    except (ImportError, OSError) as error:  # OSError: a shared library that the module loads by itself
        if is_interrupt(error):
            raise KeyboardInterrupt from None
        blamed = _named_module(error) if _named_module(error) in MODULES[extra] else _failed_in(error, MODULES[extra])
        if blamed is None:
            raise
        if isinstance(error, ModuleNotFoundError) and not _is_installed(blamed):
            raise MissingExtraError(what, extra) from None
        raise BrokenExtraError(what, extra, blamed, first_line(error)) from None


def import_onnxruntime(what: str, extra: str = "cpu") -> Any:
    """Return the module onnxruntime.

    Args:
        what: The beginning of the message where that fails: `Running a bundle`.
        extra: The extra that brings it.

    Raises:
        MissingExtraError: It is not installed.
        BrokenExtraError: It is, and cannot be imported, or parts of it are missing.
        KeyboardInterrupt: Whoever waited interrupted it.
    """
    with needs_extra(what, extra):
        onnxruntime = importlib.import_module("onnxruntime")
    # Of two packages that own one folder, uninstalling the one leaves ruins of the other, which import.
    if not hasattr(onnxruntime, "InferenceSession"):
        raise BrokenExtraError(what, extra, "onnxruntime", "parts of it are missing")
    return onnxruntime


def is_interrupt(error: BaseException | None) -> bool:
    """Return whether an error was raised because of a `KeyboardInterrupt`."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _named_module(error: Exception) -> str:
    return (getattr(error, "name", None) or "").partition(".")[0]


def _failed_in(error: Exception, modules: tuple[str, ...]) -> str | None:
    """Return the first of `modules` in whose code an error was raised; None for an error from elsewhere."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0]
        if module in modules:
            return module
        trace = trace.tb_next
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # None in sys.modules
        return False
