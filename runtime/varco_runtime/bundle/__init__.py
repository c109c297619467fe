"""bundle.json, its schema, and the checks before anything in a bundle is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varco_runtime.lazy import hand_on

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

__getattr__ = hand_on(
    __name__,
    {
        "manifest": ("Manifest",),
        "opening": (
            "LARGE_SUFFIXES",
            "MAX_MANIFEST_BYTES",
            "Bundle",
            "check_file",
            "read_manifest",
            "write_manifest",
        ),
    },
)
