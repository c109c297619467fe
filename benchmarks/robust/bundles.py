"""The tiny checkpoint and its bundle that are damaged, and whether a bundle is whole."""

from __future__ import annotations

from pathlib import Path

from varco_runtime.bundle.opening import Bundle
from varco_runtime.errors import BundleError


def make_reference(folder: Path, seed: int) -> tuple[Path, Path]:
    """A tiny checkpoint and its bundle."""
    from varco_export.tiny import TinyOptions, make_tiny

    checkpoint = make_tiny(folder / "checkpoint", TinyOptions(seed=seed))
    export_tiny(checkpoint, folder / "reference")
    return checkpoint, folder / "reference"


def export_tiny(checkpoint: Path, target: Path, overwrite: bool = False) -> None:
    """Export with the defaults. Imports the exporter when it is called: not every part of the benchmark needs it."""
    from varco_export.export import ExportOptions, export
    from varco_export.progress import Silent

    export(checkpoint, target, ExportOptions(overwrite=overwrite), Silent())


def opens(folder: Path) -> bool:
    """Whether the folder passes for a bundle, every hash included."""
    try:
        Bundle.open(folder, verify="full")
    except BundleError:
        return False
    return True


def same(folder: Path, reference: Path) -> bool:
    """Whether the folder holds every file of `reference`, byte for byte."""
    names = [path.name for path in reference.iterdir()]
    return all((folder / name).read_bytes() == (reference / name).read_bytes() for name in names)
