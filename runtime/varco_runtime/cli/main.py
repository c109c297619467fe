"""The command `varco`: its commands, and the one place where errors become a line and an exit status.

Commands import what is heavy when they run, so that `varco --help` is quick.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
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
from varco_runtime.errors import UsageError, VarcoError

INTERRUPTED = 130
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 for an error, 2 for wrong usage, 130 when interrupted."""
    console.open_missing_streams()
    try:
        status = typer.main.get_command(app).main(args=arguments, prog_name="varco", standalone_mode=False)
        return int(status or 0)
    except VarcoError as error:
        console.error(str(error))
        return 2 if isinstance(error, UsageError) else 1
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the answer has seen enough
        console.discard_stdout()
        return 1
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        console.discard_stdout()
        console.error(f"The output could not be written: {error.strerror}. Free some space, then try again.")
        return 1
    except MemoryError as error:
        console.error(
            f"There is not enough memory ({str(error) or 'no detail'}). Close programs or lower --max-context."
        )
        return 1
    except Exception as error:
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        # What the option parser raises: typer 0.15 to 0.29 share no public class for it.
        context = getattr(error, "ctx", None)
        sentence = message().rstrip(".")
        stop = "" if sentence.endswith("?") else "."
        console.error(f"{sentence}{stop} See: {context.command_path if context else 'varco'} --help")
        return 2


if __name__ == "__main__":
    sys.exit(main())
