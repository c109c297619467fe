"""`varco probe`: a bundle gets acceptance probes from the checkpoint that it was made of."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from varco_cli.arguments import BundleArgument
from varco_cli.console import note, size_text
from varco_cli.progress import ExportProgress
from varco_runtime.system.libraries import needs_extra


def probe(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="What the bundle was exported from: a folder or repository id.")
    ],
    bundle: BundleArgument,
    vision_from: Annotated[
        str | None,
        typer.Option(metavar="CHECKPOINT", help="As given to varco export, where it was.", show_default=False),
    ] = None,
) -> None:
    """Put questions with the exact model's answers into a bundle, for varco verify --numerics.

    Needs the extra 'export', but no torch.

    Computes in fp32 with one layer in memory at a time: seconds for a small model, many minutes for the 14B.
    """
    with needs_extra("Making probes", "export"):
        from varco_export.probes.make import add_probes
    with ExportProgress() as progress:
        manifest = add_probes(checkpoint, bundle, progress, vision_from)
    assert manifest.probes is not None, "Bug: no probes were added"
    note(f"{bundle} holds probes, {size_text(manifest.files[manifest.probes].size)}.")
    note(f"Next: varco verify {shlex.quote(str(bundle))} --numerics")
