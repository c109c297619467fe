"""Progress on standard error: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from varco_cli.console import note, one_line, shows_bars, size_text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


_SLOW = {"probes": "the exact model answers questions, in fp32, for varco verify --numerics"}
"""Components of an export that take longer than the others, and what they do."""


class _Bars:
    """Bars that are shown while it is entered; none without a terminal."""

    def __init__(self) -> None:
        self._bars: Progress | None = _bars("{task.completed:.0f}/{task.total:.0f}") if shows_bars() else None

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()


class ExportProgress(_Bars):
    """A bar per component of an export, as `varco_export.progress.Progress` asks for; a context manager."""

    @contextmanager
    def component(self, name: str, steps: int) -> Iterator[Callable[[], None]]:
        """Show a bar of `steps`, or write a line at its end without a terminal; yield what is called once per step.

        A component that takes longer than all others is announced before.
        """
        reason = _SLOW.get(name)
        if self._bars:
            task = self._bars.add_task(f"{name} ({reason})" if reason else name, total=steps)
            yield lambda: self._bars.advance(task) if self._bars else None
        else:
            started = time.monotonic()
            if reason:
                note(f"{name}: {reason} ...")
            yield lambda: None
            note(f"{name} exported in {time.monotonic() - started:.1f} s")


class EngineProgress(_Bars):
    """A bar per engine with the phase of its build (`varco_export.progress.EngineProgress`); a context manager."""

    @contextmanager
    def engine(self, name: str, target: str) -> Iterator[Callable[[str, int, int], None]]:
        """Show a bar, or write a line at its end without a terminal; yield what is called with a phase, its finished
        and all its steps."""
        started = time.monotonic()
        if self._bars:
            bars, title = self._bars, f"{target} {name}"
            task = bars.add_task(title, total=1)
            yield lambda phase, done, steps: bars.update(
                task, description=f"{title}: {one_line(phase)}", completed=done, total=max(steps, 1)
            )
            bars.update(task, description=title, completed=1, total=1)
        else:
            note(f"{target} {name}: building")
            yield lambda phase, done, steps: None
            note(f"{target} {name}: built in {time.monotonic() - started:.1f} s")


class HashProgress(_Bars):
    """Progress of hashing a bundle: called as `Bundle.open` calls its `progress`; a context manager.

    Says nothing unless more than `quiet_bytes` are hashed: a small bundle is done before anyone could read it.
    """

    def __init__(self, sizes: dict[str, int], quiet_bytes: int = 256 << 20) -> None:
        self._sizes = sizes
        self._quiet_bytes = quiet_bytes
        self._announced: set[str] = set()
        self._tasks: dict[str, TaskID] = {}
        self._bars = None  # until there is something to show

    def __call__(self, name: str, num_bytes: int) -> None:
        size = self._sizes.get(name, 0)
        if size < self._quiet_bytes:
            return
        if not shows_bars():
            if name not in self._announced:
                note(f"Checking the sha256 of {name} ({size_text(size)}).")
                self._announced.add(name)
            return
        if self._bars is None:
            self._bars = _bars("{task.percentage:.0f} %")
            self._bars.start()
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(f"sha256 of {one_line(name)}", total=size)
        self._bars.advance(self._tasks[name], num_bytes)


class QuestionProgress:
    """A line that says how far a picture and a prompt are read, as `Stream.progress` is called; a context manager.

    Says nothing without a terminal. `clear` takes the line away, so that an answer can take its place.
    """

    def __init__(self) -> None:
        self._is_shown = shows_bars()
        self._length = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how many tiles of the picture, or tokens of the prompt, are done."""
        if what == "tiles":
            self._show(f"Encoding the picture: tile {done + 1} of {total}")
        elif done < total:
            self._show(f"Reading the prompt: {done:,} of {total:,} tokens")
        else:
            self._show("Answering")

    def clear(self) -> None:
        """Take the line away, if one is shown."""
        if self._length:
            self._show("")
            print(end="\r", file=sys.stderr, flush=True)

    def _show(self, line: str) -> None:
        if self._is_shown:
            # Blanks, and no escape sequence, also where a terminal knows none.
            print(f"\r{line:<{self._length}}", end="", file=sys.stderr, flush=True)
            self._length = len(line)


def _bars(count: str) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn(count), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))
