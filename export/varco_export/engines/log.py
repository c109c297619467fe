"""What TensorRT says while it parses and builds: all of it in a file, and whether anything was dropped."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from varco_runtime.errors import ExportError

_LOST = "unused|not used|dropp|ignor"
_DROPPED = re.compile(rf"({_LOST}).*\b(inputs?|outputs?|tensors?)\b|\b(inputs?|outputs?|tensors?)\b.*({_LOST})", re.I)


class BuildLog:
    """What TensorRT says about one graph: all of it in a file, the first error and dropped inputs kept."""

    def __init__(self, file: TextIO, name: str) -> None:
        self._file = file
        self._name = name
        self._dropped: list[str] = []
        self._errors: list[str] = []
        self.num_messages = 0
        self.see = f"See {file.name}"

    def add(self, kind: str, message: str) -> None:
        """Write a message to the file and keep it if it is an error or says that something was dropped."""
        self.num_messages += 1
        if kind == "VERBOSE":
            return
        self._file.write(f"{kind} {message}\n")
        self._file.flush()
        if kind == "WARNING" and _DROPPED.search(message):
            self._dropped.append(message)
        elif kind.endswith("ERROR"):
            self._errors.append(message)

    @property
    def reason(self) -> str:
        return short_reason(self._errors)

    def check(self) -> None:
        """Raise if anything was dropped, or was said elsewhere: the engine would build cleanly and answer nonsense."""
        if self._dropped:
            raise ExportError(
                f"{self._name}: TensorRT dropped something it needs: {short_reason(self._dropped)}. {self.see}"
            )
        if not self.num_messages:  # it always names the file that it parses
            raise ExportError(
                f"{self._name}: TensorRT's warnings go to another part of this program, expected them here. Build "
                "engines in a process of their own: varco engines BUNDLE"
            )


@functools.cache
def process_logger(module: Any) -> Any:
    """Return the one logger of this process.

    TensorRT keeps the first that it is given and ignores all others, as long as anything made with the first is alive.
    So the logger stays, and what it writes to changes (`open_log`).
    """

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.target: BuildLog | None = None

        def log(self, severity: Any, message: str) -> None:
            if self.target is not None:
                self.target.add(str(severity).rpartition(".")[2], message)

    return Logger()


@contextlib.contextmanager
def open_log(module: Any, path: Path, name: str) -> Iterator[BuildLog]:
    """Write what TensorRT says about the graph `name` to the end of the file `path`."""
    logger = process_logger(module)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"--- {name} ---\n")
        logger.target = BuildLog(file, name)
        try:
            yield logger.target
        finally:
            logger.target = None


def short_reason(messages: list[str]) -> str:
    """Return the first of the messages, cut to 300 characters of one line."""
    text = " ".join(messages[0].split()).rstrip(".") if messages else "no reason was given"
    return text if len(text) <= 300 else text[:297] + "..."
