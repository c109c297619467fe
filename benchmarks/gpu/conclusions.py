"""What follows from a report, in lines: whether the numbers are right, who wins a pair, and why an aim is missed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.aims import AIM_SHAPE
from benchmarks.gpu.names import DECIDING, STEPS
from benchmarks.gpu.pairs import verdicts

MOST_KERNELS = 3


def conclusions(report: dict[str, Any]) -> Iterator[str]:
    """Yield one line for each step, pair and aim."""
    for name in STEPS:
        step = report.get("steps", {}).get(name)
        if step is not None:
            yield f"step {name}: {step['status']}, {step['s']:.1f} s{_why(report, name, step)}"
    yield from verdicts(report.get("pairs", {}))
    for aim in report.get("aims", []):
        yield from explain(aim, report)


def _why(report: dict[str, Any], name: str, step: dict[str, Any]) -> str:
    """Return why a step that decides failed."""
    if name not in DECIDING or step["status"] != "failed":
        return ""
    return "".join(f"; {' '.join(place)}: {why}" for place, why in _failures(report.get(name, {}), (name,)))


def _failures(figures: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(figures, dict):
        for key, value in figures.items():
            if key == "failed":
                yield place, str(value)
            else:
                yield from _failures(value, (*place, key))


def explain(aim: dict[str, Any], report: dict[str, Any]) -> Iterator[str]:
    """Yield an aim beside what was reached, and for a time that is missed the kernels, bytes and gaps of it."""
    verdict = "met" if aim["met"] else "missed"
    if "aim" in aim:
        yield f"{aim['what']}: aim {aim['aim']:.1f}, got {aim['got']:.1f}: {verdict}"
        return
    limit = f", limit {aim['limit_ms']:.1f}" if aim.get("limit_ms") else ""
    yield f"{aim['what']}: aim {aim['aim_ms']:.1f} ms, got {aim['got_ms']:.1f}{limit}: {verdict}"
    if aim["met"]:
        return
    if aim.get("bytes"):
        rate = aim["bytes"] / aim["got_ms"] / 1e9
        yield f"    it reads {aim['bytes'] / 1e9:.2f} GB, so {rate:.2f} TB/s"
    models = report.get("shapes", {}).get(AIM_SHAPE, {}).get("models", {})
    found = models.get(aim["model"], {}).get("kernels", {}).get(aim["phase"], {})
    if "kernels" not in found:
        yield "    no kernels were profiled for it"
        return
    rows = found["kernels"]
    count = sum(row["count"] for row in rows)
    yield (
        f"    {found['total_ms']:.2f} ms in kernels, {found['gap_ms']:.2f} ms between them; the {len(rows)} "
        f"largest are launched {count:.0f} times"
    )
    for row in rows[:MOST_KERNELS]:
        yield f"    {row['ms']:.3f} ms in {row['count']:.0f} x {row['kernel'][:80]}"
