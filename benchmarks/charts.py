"""Charts of what benchmarks found, as PNG in the folder `plots` beside their JSON.

    python -m benchmarks.charts benchmarks/peers.json benchmarks/scaling.json
    python -m benchmarks.charts benchmarks/quality.json benchmarks/quality_gptq.json

NAME.json of `benchmarks.peers`, `benchmarks.scaling` and `benchmarks.serve` becomes `plots/NAME-SUBJECT.png`, one file
per chart. All files of `benchmarks.quality` together become one chart, `plots/NAME.png` with the name of the first. One
release of matplotlib draws the same bytes every time: the user's own settings of it do not count.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cycler import cycler
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.path import Path as LinePath
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from benchmarks.document import write_whole
from varco_runtime.errors import UsageError

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9")
"""Okabe and Ito's, which color-blind readers can tell apart; their yellow darkened to be read on white."""
MUTED = "#666666"
DPI = 200
STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLORS, marker=("o", "s", "^", "D", "o", "s")),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "font.size": 9,
    "grid.color": "#e4e4e4",
    "legend.columnspacing": 1.5,
    "legend.frameon": False,
    "legend.handlelength": 1.5,
    "legend.handletextpad": 0.4,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}
GUIDE = "_guide"
"""How a guide is told from a series; matplotlib's legend leaves out what begins with an underscore."""
OFFSETS = tuple(itertools.product((7, 18, 32, 46, 60, 74, 88, 102), (0, 180, 90, 270, 45, 315, 135, 225)))
"""Where a label may stand from its point: a distance in points and an angle in degrees, the best first."""
Label = tuple[float, float, str, str]
"""A place in the data, what is written beside it, and the color."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.charts", description="Draw charts of results.")
    parser.add_argument("reports", nargs="+", type=Path, metavar="JSON")
    paths: list[Path] = parser.parse_args(arguments).reports
    quality: dict[Path, dict[str, Any]] = {}
    for path in paths:
        report = json.loads(path.read_text(encoding="utf-8"))
        name = report.get("benchmark") if isinstance(report, dict) else None
        if name is None:
            quality[path] = _checked_quality(path, report)
        elif name in CHARTS:
            with style.context(["default", STYLE]):
                for subject, figure in CHARTS[name](report):
                    _save(figure, path.parent / "plots" / f"{path.stem}-{subject}.png")
        else:
            raise UsageError(f"{path} is a report of {name!r}, expected one of: {', '.join(CHARTS)}. Give another.")
    if quality:
        first = next(iter(quality))
        figures = {name: figure for file in quality.values() for name, figure in file.items()}
        if "bytes_per_token" not in figures.get("fp32", {}):
            raise UsageError(f"{first} holds no figures of fp32, from which others diverge. Give such a file.")
        with style.context(["default", STYLE]):
            _save(quality_chart(figures), first.parent / "plots" / f"{first.stem}.png")
    return 0


def _checked_quality(path: Path, report: Any) -> dict[str, Any]:
    """Return what `benchmarks.quality` wrote: figures by the name of a bundle."""
    if not isinstance(report, dict) or not all(isinstance(figures, dict) for figures in report.values()):
        raise UsageError(f"{path} holds no figures of benchmarks.quality. Make them with its option --out.")
    return report


# --- what is drawn ----------------------------------------------------------------------------------------------------


def peer_charts(report: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Draw decode time beside memory, and the fastest variant of each peer over the context beside the limit."""
    contexts, rows = report["contexts"], report["text"]
    names = list(dict.fromkeys(row["peer"] for row in rows))

    def decode_ms(row: dict[str, Any], context: int) -> float:
        return float(row["decode_ms"][str(context)]["median"])

    title = f"Qwen2 {report['shape']} shape, {report['threads']} threads, context {contexts[0]}"
    axes = new_axes(title, "decode, ms/token", "peak resident memory, MiB", log="x")
    labels: list[Label] = []
    for name in names:
        of_peer = [row for row in rows if row["peer"] == name]
        xs, ys = [decode_ms(row, contexts[0]) for row in of_peer], [row["peak_rss_bytes"] / 2**20 for row in of_peer]
        color = plot(axes, name, xs, ys, linestyle="none")
        labels += [(x, y, row["variant"], color) for x, y, row in zip(xs, ys, of_peer, strict=True)]
    _guide(axes, report["limit_decode_ms"][str(contexts[0])], "int4 limit")
    yield "memory", finished(axes, labels)

    if len(contexts) < 2:
        return
    axes = new_axes("The fastest variant of each peer", "context, tokens", "decode, ms/token", log="y")
    plot(axes, "int4 limit", contexts, [report["limit_decode_ms"][str(at)] for at in contexts])
    for name in names:
        best = min((row for row in rows if row["peer"] == name), key=lambda row: decode_ms(row, max(contexts)))
        plot(axes, f"{name} {best['variant']}", contexts, [decode_ms(best, at) for at in contexts])
    yield "context", finished(axes)


def scaling_charts(report: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Draw each study: its medians, the line that fits them, and what memory alone would take from its first point."""
    for study in report["studies"]:
        axes = new_axes(study["name"].capitalize(), study["x_label"], study["y_label"])
        xs, medians = study["x"], [one["median"] for one in study["y"]]
        ends = (min(xs), max(xs))
        plot(axes, "measured", xs, medians, linestyle="none")
        if study["fit"]:
            line = study["fit"]["line"]
            plot(axes, "least squares", ends, [line["intercept"] + line["slope"] * x for x in ends], marker="")
        if "limit_slope" in study:
            limit = [medians[0] + study["limit_slope"] * (x - xs[0]) for x in ends]
            plot(axes, "bytes over bandwidth, from the first point", ends, limit, marker="")
        yield study["name"].replace(" ", "-"), finished(axes)


def quality_chart(figures: dict[str, dict[str, Any]]) -> Figure:
    """Draw the bytes that a token reads beside the KL from fp32 and its standard error; fp32, with none, is a line.

    Args:
        figures: What `benchmarks.quality` found, by the name of a bundle.
    """
    kinds: dict[str, dict[str, dict[str, Any]]] = {}
    for name, found in figures.items():
        if found.get("kl"):
            # A precision says "blocks" where the exporter rounded, "groups" and the like of a checkpoint's own format.
            kind = "rounded to the nearest" if "blocks of" in found["precision"] else "quantised checkpoint"
            kinds.setdefault(kind, {})[name] = found
    axes = new_axes("Divergence from full precision", "weights read per token, MB", "KL, nats per token", log="y")
    labels: list[Label] = []
    for kind, of_kind in kinds.items():
        xs = [found["bytes_per_token"] / 1e6 for found in of_kind.values()]
        ys = [found["kl"] for found in of_kind.values()]
        color = plot(axes, kind, xs, ys, [found["kl_error"] for found in of_kind.values()], linestyle="none")
        labels += [(x, y, name, color) for x, y, name in zip(xs, ys, of_kind, strict=True)]
    _guide(axes, figures["fp32"]["bytes_per_token"] / 1e6, "fp32: KL 0")
    return finished(axes, labels)


def _serve_charts(report: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    from benchmarks.load.charts import serve_charts  # which draws with what stands below

    return serve_charts(report)


def sample_charts(report: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Draw KL over the tokens that a model was calibrated with, a line for each kind of them."""
    axes = new_axes("How many calibration samples are enough", "calibration tokens", "KL, nats per token", log="xy")
    for name, points in report["curves"].items():
        errors = [point.get("kl_error", 0.0) for point in points]
        plot(axes, name, [point["tokens"] for point in points], [point["kl"] for point in points], errors)
    yield "kl", finished(axes)


CHARTS = {"peers": peer_charts, "samples": sample_charts, "scaling": scaling_charts, "serve": _serve_charts}


# --- drawing ----------------------------------------------------------------------------------------------------------


def new_axes(title: str, x_label: str, y_label: str, log: str = "") -> Axes:
    """Return the axes of a new figure; `log` names those that are logarithmic."""
    axes = Figure(figsize=(7.2, 4.5), dpi=DPI, layout="constrained").add_subplot()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if name in log:
            axes.set(**{f"{name}scale": "log"})
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}".replace("e-0", "e-")))
    return axes


def plot(
    axes: Axes,
    name: str,
    xs: Sequence[float],
    ys: Sequence[float],
    errors: Sequence[float] | None = None,
    **look: str,
) -> str:
    """Draw a series of marked points that a line joins, and return its color.

    Args:
        axes: Where to draw.
        name: What the legend calls it.
        xs: Places along x.
        ys: Places along y, as many.
        errors: Standard errors along y, as many.
        look: What is to look otherwise, as matplotlib's `linestyle="none"`.

    Raises:
        ValueError: If a value has no place on its axis.
    """
    for label, scale, values in (
        (axes.get_xlabel(), axes.get_xscale(), xs),
        (axes.get_ylabel(), axes.get_yscale(), ys),
    ):
        for value in values:
            if not math.isfinite(value):
                raise ValueError(f"{label} has the value {value}, expected finite numbers.")
            if scale == "log" and value <= 0:
                raise ValueError(f"{label} has the value {value}, expected positive ones on a logarithmic axis.")
    drawn = axes.errorbar(xs, ys, errors, label=name, capsize=3, elinewidth=1, **look)
    return str(drawn.lines[0].get_color())


def _guide(axes: Axes, x: float, name: str) -> None:
    """Draw a vertical line with a name, for what has no place on the other axis."""
    axes.axvline(x, color=MUTED, linestyle="--", linewidth=1, label=GUIDE)
    axes.annotate(
        name, (x, 1), (4, -4), xycoords=("data", "axes fraction"), textcoords="offset points", va="top", color=MUTED
    )


def finished(axes: Axes, labels: Iterable[Label] = ()) -> Figure:
    """Return the figure with its legend, its labels, and linear axes that begin at zero.

    Raises:
        ValueError: If nothing was drawn.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    if not axes.containers:
        raise ValueError(f"The chart {axes.get_title(loc='left')!r} has no points, expected at least one.")
    if axes.get_xscale() == "linear":
        axes.set_xlim(left=0)
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)
    if len(axes.containers) > 1:
        figure.legend(loc="outside lower left", ncols=3)
    _write_labels(figure, axes, labels)
    return figure


def _write_labels(figure: Figure, axes: Axes, labels: Iterable[Label]) -> None:
    """Write labels beside their points, where they and the lines that lead to them cover nothing; else on the right."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # from here on the axes keep their place
    figure.set_layout_engine("none")
    labels = sorted(labels, key=lambda label: (-label[0], label[1], label[2]))
    taken = [Bbox([place, place]).padded(9) for place in (axes.transData.transform(label[:2]) for label in labels)]
    taken += [text.get_window_extent(renderer) for text in axes.texts]
    taken += [line.get_window_extent(renderer).padded(3) for line in axes.lines if line.get_label() == GUIDE]
    bars = [bar for drawn in axes.collections if isinstance(drawn, LineCollection) for bar in drawn.get_segments()]
    taken += [Bbox(axes.transData.transform(bar)).padded(6) for bar in bars]
    lines: list[LinePath] = []
    for index, label in enumerate(labels):
        others = [box for box in taken if not box.overlaps(taken[index])]
        for offset in OFFSETS:
            note = _note(axes, label, *offset)
            note.update_positions(renderer)
            box = Text.get_window_extent(note, renderer)  # of the text without the line that leads to it
            line = LinePath([taken[index].get_points().mean(axis=0), box.get_points().mean(axis=0)])
            is_free = not box.count_overlaps(taken) and not any(line.intersects_bbox(one, False) for one in others)
            if is_free and _holds(axes.bbox, box) and not any(other.intersects_bbox(box) for other in lines):
                break
            note.remove()
        else:
            _note(axes, label, *OFFSETS[0])
        taken.append(box)
        lines.append(line)


def _note(axes: Axes, label: Label, distance: int, angle: int) -> Annotation:
    """Write a label so many points away from its place in this direction, with a line between if that is far."""
    x, y, text, color = label
    dx, dy = distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))
    return axes.annotate(
        text,
        (x, y),
        (dx, dy),
        textcoords="offset points",
        ha="center" if abs(dx) < 1 else "left" if dx > 0 else "right",
        va="center" if abs(dy) < 1 else "bottom" if dy > 0 else "top",
        color=color,
        arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5} if distance > OFFSETS[0][0] else None,
    )


def _holds(outer: Bbox, inner: Bbox) -> bool:
    return bool(outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1)


def _save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, and print the path."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})  # which would name the release
    path.parent.mkdir(exist_ok=True)
    write_whole(path, file.getvalue())
    print(path)


if __name__ == "__main__":
    sys.exit(main())
