"""TensorRT or TensorRT for RTX, one interface under two module names: found, or what is missing in one line."""

from __future__ import annotations

import importlib
from typing import Any

from varco_runtime.errors import BackendError, first_line
from varco_runtime.extras import install_command
from varco_runtime.system.libraries import is_interrupt

_MODULES = {"tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"), "tensorrt": ("tensorrt",)}
PRODUCTS = {"tensorrt_rtx": "TensorRT for RTX", "tensorrt": "TensorRT"}


def find_module(builder: str) -> tuple[Any, str]:
    """Return a builder's module; or None and why it cannot be loaded, which is empty where it is not installed."""
    reason = ""
    for name in _MODULES[builder]:
        try:
            return importlib.import_module(name), ""
        except (ImportError, OSError) as error:  # OSError: a shared library that the module loads by itself
            if is_interrupt(error):
                raise KeyboardInterrupt from None
            is_missing = isinstance(error, ModuleNotFoundError) and error.name == name
            if not is_missing:  # it is there, what it needs is not
                reason = reason_of(str(error))
    return None, reason


def import_builder(builder: str) -> Any:
    """Return the module of a builder.

    Raises:
        BackendError: It is not installed, or cannot be loaded.
    """
    module, reason = find_module(builder)
    if module is not None:
        return module
    problem = f"cannot be loaded ({reason})" if reason else "is not installed"
    raise BackendError(f"{PRODUCTS[builder]}, which built this bundle's engines, {problem}. {_how_to_get(builder)}")


def _how_to_get(builder: str) -> str:
    if builder == "tensorrt_rtx":
        return f"Install it with: {install_command('tensorrt')}"
    return "Install it as the README says (JetPack and NVIDIA's containers bring it)."


def error_log(module: Any, errors: list[str]) -> Any:
    """Return a logger that keeps what TensorRT calls errors. Its base class is only known once the library is there."""
    serious = (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR)

    def init(self: Any) -> None:
        module.ILogger.__init__(self)

    def log(self: Any, severity: Any, message: str) -> None:
        if severity in serious:
            errors.append(message)
            del errors[:-20]

    return type("ErrorLog", (module.ILogger,), {"__init__": init, "log": log})()


def reason_of(text: str) -> str:
    """Return the first line of what TensorRT said, without a full stop."""
    return first_line(text, "no reason was given").rstrip(".")
