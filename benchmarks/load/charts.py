"""Charts of `benchmarks.serve`: throughput and first tokens by the number of callers, and memory over a soak."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure

from benchmarks.charts import finished, new_axes, plot
from benchmarks.load.server import ROLES


def serve_charts(report: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Draw the parts `callers` and `soak`, where they were run.

    Args:
        report: What `benchmarks.serve` found.
    """
    rows = report.get("callers")
    if rows:
        title = f"{report['bundle']}, {report['slots']} slots"
        axes = new_axes(title, "callers", "tokens a second, of all", log="x")
        for name, label in (("engine", "the engine alone"), ("server", "varco serve")):
            points = [(row["callers"], row[name]["tokens_per_s"]) for row in rows if name in row]
            if points:
                plot(axes, label, *zip(*points, strict=True))
        yield "throughput", finished(axes)
        axes = new_axes(title, "callers", "first token, ms", log="xy")
        for rank in ("p50", "p99"):
            plot(axes, rank, [row["callers"] for row in rows], [row["server"]["ttft_ms"][rank] for row in rows])
        yield "first-token", finished(axes)
    soaked = report.get("soak")
    if soaked:
        minutes = f"{soaked['seconds'] / 60:g} minutes, {soaked['requests']:,} requests"
        axes = new_axes(f"A soak of {minutes}", "seconds", "resident memory, MB")
        for role in ROLES:
            points = [(at, sizes[role] / 1e6) for at, sizes in soaked["series"] if role in sizes]
            plot(axes, role, *zip(*points, strict=True), marker="")
        yield "soak", finished(axes)
