"""All commands of `varco`. They import what is heavy when they run, so that `varco --help` is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from varco_runtime import __version__
from varco_runtime.cli import console
from varco_runtime.cli.bench import bench
from varco_runtime.cli.cache import cache
from varco_runtime.cli.demo import demo
from varco_runtime.cli.doctor import doctor
from varco_runtime.cli.engines import engines
from varco_runtime.cli.export import export
from varco_runtime.cli.inspect import inspect
from varco_runtime.cli.probe import probe
from varco_runtime.cli.quantize import quantize
from varco_runtime.cli.run import run
from varco_runtime.cli.verify import verify

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (export, engines, quantize, run, inspect, verify, probe, bench, demo, doctor, cache):
    app.command()(command)


def _version(asked: bool) -> None:
    if asked:
        console.write(f"varco-edge {__version__}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def varco(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Export VARCO-VISION and LLaVA-OneVision checkpoints to ONNX bundles, and ask the bundles about pictures."""
    if context.invoked_subcommand is None:
        console.write(context.get_help() + "\n")
