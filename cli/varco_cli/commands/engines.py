"""`varco engines`: TensorRT engines for a bundle, built on or for the device that runs them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from varco_cli.console import note, print_table, size_text
from varco_cli.progress import EngineProgress, HashProgress


def engines(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle exported with --device tensorrt.")],
    sm: Annotated[
        list[int] | None,
        typer.Option(
            metavar="86|89|120|...",
            help="Compute capability to build for, times ten; may be repeated. Without it, the GPU that is there.",
            show_default=False,
        ),
    ] = None,
    max_context: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Tokens of prompt, picture and answer, at most the bundle's.", show_default=False
        ),
    ] = None,
    max_tiles: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tiles of a picture that are encoded at a time, 5 unless given; fewer take less memory.",
            show_default=False,
        ),
    ] = None,
    slots: Annotated[
        int, typer.Option(metavar="N", help="The most answers at once: the decoder then steps for 2 to N together.")
    ] = 1,
) -> None:
    """Build TensorRT engines of a bundle. Needs TensorRT, or TensorRT for RTX, which needs no GPU to build."""
    from varco_export.engines.build import EngineOptions, build_engines
    from varco_runtime.bundle.opening import read_manifest

    options = EngineOptions(tuple(sm or ()), max_context, max_tiles, slots)
    sizes = {name: facts.size for name, facts in read_manifest(bundle).files.items()}
    with HashProgress(sizes) as hashing, EngineProgress() as progress:
        reports = build_engines(bundle, options, progress, hashing)
    rows = [
        (
            report.facts.file.removeprefix("engines/").removesuffix(".engine"),
            report.facts.precision,
            size_text(report.weight_bytes),
            size_text(report.built.facts.size),
            f"{report.built.seconds:.1f} s",
            size_text(report.built.peak_bytes),
            size_text(report.built.mapped_bytes),
        )
        for report in reports
    ]
    first = reports[0].facts
    header = ("", "weights", "read per pass", "on disk", "built in", "peak memory", "and mapped files")
    print_table(f"{first.builder} {first.builder_version}", header, rows, right=(2, 3, 4, 5, 6))
    note(f"The build's logs: {bundle / 'engines'}")
    note("An engine is a program: build it on your own machine rather than take one from others.")
    note(f'Next, on the device: varco run {shlex.quote(str(bundle))} PICTURE "Describe this image."')
