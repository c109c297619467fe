"""One run of `gpu_check`: the steps that are asked for, in order, within a budget, and the report that they fill."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.conclusions import conclusions
from benchmarks.gpu.model import remove
from benchmarks.gpu.names import BUDGET_S, DECIDING, LIMIT_S, STEPS
from benchmarks.gpu.process import run_apart
from benchmarks.gpu.report import at, begun, holds, is_missing, save
from benchmarks.gpu.steps import Part, parts_of
from benchmarks.gpu.table import table

REPORT = "gpu_check.json"


class Run:
    """The steps, one after the other. Raises `UsageError` for a report that is none."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._started = time.monotonic()
        self._path = options.out / REPORT
        options.out.mkdir(parents=True, exist_ok=True)
        options.folder.mkdir(parents=True, exist_ok=True)
        names = ("provider", "shape", "max_context")
        self.report = begun(self._path, {name: getattr(options, name) for name in names})

    def all(self) -> bool:
        """Run every step that is asked for; return False where one that decides failed, which ends the run."""
        for step in (step for step in STEPS if step in self._options.steps):
            if not self._step(step) and step in DECIDING:
                return False
        return True

    def lines(self) -> Iterator[str]:
        """Yield the table and what follows from it."""
        yield from table(self.report)
        yield ""
        yield from conclusions(self.report)
        yield f"Everything is in {self._path}"

    def _step(self, name: str) -> bool:
        """Run the parts of a step and note how it ended; return whether it is whole."""
        started = time.monotonic()
        limit_s = LIMIT_S[name] * max(1.0, self._options.budget_s / BUDGET_S)
        ends = started + min(limit_s, self._left_s())
        parts = parts_of(name, self._options, self.report, ends - started)
        found = []
        for number, part in enumerate(parts):
            found.append(at(self.report, part.place))
            self._part(part, ends, "failed" if name in DECIDING else "left_out")
            later = {other.bundle for other in parts[number + 1 :]}
            if part.bundle is not None and part.bundle not in later and not self._options.keep:
                remove(part.bundle)
            if name in DECIDING and holds(found[-1], "failed"):
                break
        status = "done"
        if any(holds(one, "failed") for one in found):
            status = "failed"
        elif any(is_missing(one) for one in found):
            status = "left out"
        at(self.report, ("steps", name)).update(status=status, s=round(time.monotonic() - started, 1))
        save(self._path, self.report)
        return status == "done"

    def _part(self, part: Part, ends: float, failed: str) -> None:
        """Fill one place of the report, unless it is full."""
        name = " ".join(part.place).removeprefix("shapes ")
        figures = at(self.report, part.place)
        if figures and not self._options.again and not is_missing(figures):
            _say(f"{name}: in the report already")
            return
        limit_s = ends - time.monotonic()
        if limit_s <= 0:
            if not figures:
                figures["left_out"] = "no time was left; the same command goes on here"
                save(self._path, self.report)
            _say(f"{name}: left out, no time is left")
            return
        _say(f"{name}: begins")
        figures.pop("left_out", None)
        if not part.goes_on or self._options.again:
            figures.clear()

        def tell(place: tuple[str, ...], figure: Any) -> None:
            at(figures, place[:-1])[place[-1]] = figure
            save(self._path, self.report)

        started = time.monotonic()
        failure = run_apart(part.measure, part.arguments, tell, limit_s)
        if failure is not None:
            figures[failed] = failure
        figures["step_s"] = round(time.monotonic() - started, 1)
        save(self._path, self.report)
        _say(f"{name}: {failure or 'done'}, {figures['step_s']} s")

    def _left_s(self) -> float:
        return float(self._options.budget_s - (time.monotonic() - self._started))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
