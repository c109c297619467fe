"""Charts of what `benchmarks.peers` and `benchmarks.scaling` found, as PNG in the folder `plots` beside their JSON.

    python -m benchmarks.charts benchmarks/peers.json benchmarks/scaling.json

`NAME.json` becomes `plots/NAME-SUBJECT.png`, one file per chart.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.plot import Axis, Chart, Point, Series, save
from varco_runtime.errors import UsageError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.charts", description="Draw charts of results.")
    parser.add_argument("reports", nargs="+", type=Path, metavar="JSON")
    for path in parser.parse_args(arguments).reports:
        report = json.loads(path.read_text(encoding="utf-8"))
        name = report.get("benchmark") if isinstance(report, dict) else None
        if name not in CHARTS:
            raise UsageError(f"{path} is a report of {name!r}, expected one of: {', '.join(CHARTS)}. Give another.")
        for subject, chart in CHARTS[report["benchmark"]](report):
            target = path.parent / "plots" / f"{path.stem}-{subject}.png"
            target.parent.mkdir(exist_ok=True)
            save(chart, target)
            print(target)
    return 0


def peer_charts(report: dict[str, Any]) -> Iterator[tuple[str, Chart]]:
    """Decode time beside memory, and the fastest variant of each peer over the context, beside the limit."""
    context = str(report["contexts"][0])
    names = list(dict.fromkeys(row["peer"] for row in report["text"]))
    points = [
        Series(
            name,
            [
                Point(row["decode_ms"][context]["median"], row["peak_rss_bytes"] / 2**20, label=row["variant"])
                for row in report["text"]
                if row["peer"] == name
            ],
        )
        for name in names
    ]
    title = f"Qwen2 {report['shape']} shape, {report['threads']} threads, context {context}"
    x, y = Axis("decode, ms/token", is_log=True), Axis("peak resident memory, MiB")
    yield "memory", Chart(title, x, y, points, guides=[(report["limit_decode_ms"][context], "int4 limit")])
    if len(report["contexts"]) < 2:
        return
    longest = str(max(report["contexts"]))
    limit = [Point(at, report["limit_decode_ms"][str(at)]) for at in report["contexts"]]
    lines = [Series("int4 limit", limit, is_line=True)]
    for name in names:
        rows = [row for row in report["text"] if row["peer"] == name]
        best = min(rows, key=lambda row: row["decode_ms"][longest]["median"])
        measured = [Point(at, best["decode_ms"][str(at)]["median"]) for at in report["contexts"]]
        lines.append(Series(f"{name} {best['variant']}", measured, is_line=True))
    title = "The fastest variant of each peer"
    y = Axis("decode, ms/token", is_log=True)
    yield "context", Chart(title, Axis("context, tokens"), y, lines, size=(960, 420))


def scaling_charts(report: dict[str, Any]) -> Iterator[tuple[str, Chart]]:
    """Each study: its medians, the line that fits them, and what memory alone would take from its first point on."""
    for study in report["studies"]:
        xs, medians = study["x"], [one["median"] for one in study["y"]]
        series = [Series("measured", [Point(x, y) for x, y in zip(xs, medians, strict=True)])]
        if study["fit"]:
            line = study["fit"]["line"]
            fitted = [Point(x, line["intercept"] + line["slope"] * x) for x in (min(xs), max(xs))]
            series.append(Series("least squares", fitted, is_line=True))
        if "limit_slope" in study:
            start = xs[0], medians[0]
            limit = [Point(x, start[1] + study["limit_slope"] * (x - start[0])) for x in (min(xs), max(xs))]
            series.append(Series("bytes over bandwidth, from the first point", limit, is_line=True))
        title = study["name"].capitalize()
        yield study["name"].replace(" ", "-"), Chart(title, Axis(study["x_label"]), Axis(study["y_label"]), series)


CHARTS = {"peers": peer_charts, "scaling": scaling_charts}


if __name__ == "__main__":
    sys.exit(main())
