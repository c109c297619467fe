"""One measurement in a process of its own: what fails there, or ends the process, costs its own figures alone.

A process that ended has given the device's memory back, and an error that leaves CUDA unusable stays inside it. Figures
come one by one as they are made, so those before a failure are kept.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from varco_runtime.errors import VarcoError, first_line

Tell = Callable[[tuple[str, ...], Any], None]
"""Hands over one figure and its place in the report: `tell(("decode", "1024"), {"ms": 2.1})`."""


def run_apart(measure: Callable[..., None], arguments: tuple[Any, ...], tell: Tell, timeout_s: float) -> str | None:
    """`measure(*arguments, tell)` in a fresh interpreter. None, or in one line why it did not come to its end."""
    context = multiprocessing.get_context("spawn")  # a fork would share the state of CUDA and of threads
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, measure, arguments))
    process.start()
    theirs.close()
    try:
        return _listen(ours, tell, time.monotonic() + timeout_s)
    except EOFError:
        return _end_of(process)
    except TimeoutError:
        return f"it was stopped after {timeout_s:.0f} s"
    finally:
        if process.is_alive():
            process.kill()
        process.join()
        ours.close()


def attempt(tell: Tell, place: tuple[str, ...], measure: Callable[[], Any]) -> None:
    """Tell what `measure` returns, or `left_out` and why it failed. What comes after it goes on."""
    try:
        found = measure()
    except Exception as error:  # of any library's type: a shortage, a compiler's error, a missing kernel
        found = {"left_out": reason(error)}
    tell(place, found)


def reason(error: Exception) -> str:
    """An error in one line: ours as they are, others with their type."""
    return str(error) if isinstance(error, VarcoError) else f"{type(error).__name__}: {first_line(error)}"


def _listen(connection: Connection, tell: Tell, until: float) -> str | None:
    """Pass on what comes; the reason of a failure. Raises `EOFError` where the process ended without a word, and
    `TimeoutError`. How it ends after its last word does not matter: libraries may fail while they are unloaded."""
    while True:
        if not connection.poll(max(0.0, until - time.monotonic())):
            raise TimeoutError
        kind, content = connection.recv()
        if kind == "figure":
            tell(*content)
        else:
            return str(content) if kind == "failed" else None


def _end_of(process: Any) -> str:
    process.join()
    if process.exitcode < 0:
        return f"its process was ended by signal {-process.exitcode}, as by a lack of memory where that is 9"
    return f"its process ended with status {process.exitcode}"


def _work(connection: Connection, measure: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.dup2(2, 1)  # the table alone goes to stdout, whatever a library prints
    try:
        measure(*arguments, lambda place, figure: connection.send(("figure", (place, figure))))
    except Exception as error:
        connection.send(("failed", reason(error)))
    else:
        connection.send(("done", None))
