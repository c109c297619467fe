"""All commands of `varco`. They import what is heavy when they run, so that `varco --help` is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from varco_cli import console
from varco_cli.commands.bench import bench
from varco_cli.commands.cache import cache
from varco_cli.commands.demo import demo
from varco_cli.commands.doctor import doctor
from varco_cli.commands.engines import engines
from varco_cli.commands.export import export
from varco_cli.commands.inspect import inspect
from varco_cli.commands.probe import probe
from varco_cli.commands.quantize import quantize
from varco_cli.commands.run import run
from varco_cli.commands.serve import serve
from varco_cli.commands.verify import verify
from varco_runtime import __version__

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (export, engines, quantize, run, serve, inspect, verify, probe, bench, demo, doctor, cache):
    # `run` says itself what to do about arguments too many: whoever asks about two pictures names them so at first
    app.command(context_settings={"allow_extra_args": command is run})(command)


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
