"""The command `varco`: the one place where errors become a line and an exit status.

Imports next to nothing, so that ctrl-C is in good hands some milliseconds after Python itself has started; the commands
come when `main` runs.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as typing has it, which takes longer to import than this
if TYPE_CHECKING:
    from collections.abc import Sequence

    from varco_cli.interrupts import Interrupts

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 for an error, 2 for wrong usage, 130 when interrupted."""
    try:
        from varco_cli.interrupts import Interrupts

        with Interrupts() as interrupts:
            status = _run(arguments, interrupts)
    except KeyboardInterrupt:
        return INTERRUPTED
    return INTERRUPTED if interrupts.seen else status


def _run(arguments: Sequence[str] | None, interrupts: Interrupts) -> int:
    import errno

    import typer

    from varco_cli import console
    from varco_cli.app import app
    from varco_runtime.errors import UsageError, VarcoError

    console.open_missing_streams()
    try:
        status = typer.main.get_command(app).main(args=arguments, prog_name="varco", standalone_mode=False)
        return int(status or 0)
    except VarcoError as error:
        if not interrupts.seen:  # else it may be what a library made of the interrupt
            console.error(str(error))
        return 2 if isinstance(error, UsageError) else 1
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the answer has seen enough
        console.discard_stdout()
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
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
