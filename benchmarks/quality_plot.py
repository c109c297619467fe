"""What `benchmarks.quality` found, as a chart: the bytes that a token reads against the divergence from fp32.

python -m benchmarks.quality_plot benchmarks/quality.json benchmarks/plots/quality.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.plot import Axis, Chart, Point, Series, save
from varco_runtime.errors import UsageError


def quality_chart(results: dict[str, dict[str, Any]]) -> Chart:
    """One point a bundle, with the standard error of its KL; fp32, whose KL is zero, is a line."""
    kinds: dict[str, list[Point]] = {}
    for name, figures in results.items():
        if figures.get("kl"):
            point = Point(figures["bytes_per_token"] / 1e6, figures["kl"], figures["kl_error"], name)
            # A precision says "blocks" where the exporter rounded, "groups" and the like of a checkpoint's own format.
            kind = "rounded to the nearest" if "blocks of" in figures["precision"] else "quantised checkpoint"
            kinds.setdefault(kind, []).append(point)
    return Chart(
        "Divergence from full precision",
        Axis("weights read per token, MB"),
        Axis("KL, nats per token", is_log=True),
        [Series(kind, points) for kind, points in kinds.items()],
        guides=[(results["fp32"]["bytes_per_token"] / 1e6, "fp32: KL 0")],
    )


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return what `benchmarks.quality` wrote: figures by the name of a bundle."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not all(isinstance(figures, dict) for figures in found.values()):
        raise UsageError(f"{path} holds no figures of benchmarks.quality. Make them with its option --out.")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON documents of benchmarks.quality")
    parser.add_argument("out", type=Path, help="the PNG to write")
    options = parser.parse_args(arguments)
    results: dict[str, dict[str, Any]] = {}
    for path in options.results:
        results |= _read(path)
    if "bytes_per_token" not in results.get("fp32", {}):
        raise UsageError(f"{options.results[0]} holds no figures of fp32, from which others diverge. Give such a file.")
    save(quality_chart(results), options.out)


if __name__ == "__main__":
    main()
