"""bundle.json, its schema, and the checks before anything in a bundle is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varco_runtime.bundle.opening import (
        LARGE_SUFFIXES,
        MAX_GRAPH_BYTES,
        MAX_MANIFEST_BYTES,
        Bundle,
        Stamp,
        check_file,
        check_graph,
        digest_of,
        read_manifest,
        write_manifest,
    )

__all__ = [
    "LARGE_SUFFIXES",
    "MAX_GRAPH_BYTES",
    "MAX_MANIFEST_BYTES",
    "Bundle",
    "Stamp",
    "check_file",
    "check_graph",
    "digest_of",
    "read_manifest",
    "write_manifest",
]

_HOMES = {
    "Bundle": "opening",
    "LARGE_SUFFIXES": "opening",
    "MAX_GRAPH_BYTES": "opening",
    "MAX_MANIFEST_BYTES": "opening",
    "Stamp": "opening",
    "check_file": "opening",
    "check_graph": "opening",
    "digest_of": "opening",
    "read_manifest": "opening",
    "write_manifest": "opening",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
