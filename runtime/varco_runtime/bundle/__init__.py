"""bundle.json, its schema, and the checks before anything in a bundle is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varco_runtime.bundle.manifest import Manifest
    from varco_runtime.bundle.opening import (
        LARGE_SUFFIXES,
        MAX_MANIFEST_BYTES,
        Bundle,
        check_file,
        read_manifest,
        write_manifest,
    )

__all__ = [
    "LARGE_SUFFIXES",
    "MAX_MANIFEST_BYTES",
    "Bundle",
    "Manifest",
    "check_file",
    "read_manifest",
    "write_manifest",
]

_HOMES = {
    "manifest": ("Manifest",),
    "opening": (
        "LARGE_SUFFIXES",
        "MAX_MANIFEST_BYTES",
        "Bundle",
        "check_file",
        "read_manifest",
        "write_manifest",
    ),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
