"""varco-edge export: a LLaVA-OneVision checkpoint becomes a bundle, without torch and without loading it into memory.

What programs call, from a checkpoint to a bundle that proves itself on a GPU:

    quantize_checkpoint   a checkpoint -> a GPTQ or FP8 checkpoint (the extra `quantize`)
    export_bundle         a checkpoint -> a bundle (the extra `export`)
    build_engines         a bundle for TensorRT -> its engines
    add_probes            a bundle and its checkpoint -> the bundle with the exact model's answers in it

Names are imported when they are first used. Importing the package raises `ExportError` where the system has no `fcntl`,
whose file locks keep two exports apart: on Windows.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

from varco_runtime.errors import ExportError

TYPE_CHECKING = False  # as typing has it, which takes longer to import than the rest of this file
if TYPE_CHECKING:
    from typing import Any

    from varco_export.engines.build import EngineOptions, build_engines
    from varco_export.export import export as export_bundle
    from varco_export.options import ExportOptions
    from varco_export.probes.make import add_probes
    from varco_export.quantize import QuantizeOptions
    from varco_export.quantize import quantize as quantize_checkpoint

if importlib.util.find_spec("fcntl") is None:
    raise ExportError(
        f"Making bundles needs the file locks of Linux and macOS (fcntl), which {sys.platform} does not have. Make the "
        "bundle on Linux, for example in WSL, and copy it: running bundles needs no such locks."
    )

__all__ = [
    "EngineOptions",
    "ExportOptions",
    "QuantizeOptions",
    "add_probes",
    "build_engines",
    "export_bundle",
    "quantize_checkpoint",
]

_HOMES = {
    "EngineOptions": "engines.build.EngineOptions",
    "ExportOptions": "options.ExportOptions",
    "QuantizeOptions": "quantize.options.QuantizeOptions",
    "add_probes": "probes.make.add_probes",
    "build_engines": "engines.build.build_engines",
    "export_bundle": "export.export",
    "quantize_checkpoint": "quantize.quantize",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].rpartition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    """The names above too, though none is imported yet: what tab completion offers."""
    return sorted({*globals(), *__all__})
