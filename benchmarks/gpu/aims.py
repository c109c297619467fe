"""What follows from the figures: fractions of the device's limits, how many times transformers, and the aims.

Everything here is computed from the report alone, and anew each time something was added to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

AIM_SHAPE = "14b"
BANDWIDTH = {"H200": 4.8, "H100": 3.35}
"""TB/s by the maker. Aims are those of an H200; a token's on another are as far from its limit."""
DECODE_AIMS_MS = {"bf16": 7.7, "int4": 3.0, "fp8": 4.6}
"""A token at `AIM_CONTEXT`, with a head in 16 bits."""
AIM_CONTEXT = "1024"
VISION_AIM_MS, AIM_TILES = 17.0, "10"
PREFILL_AIM_MS, AIM_PICTURE = 160.0, "2.9k"
TIMES_AIM, TIMES_AIM_DECODER = 3.0, "int4"
"""Decode speed over transformers' in bf16, the faster of its caches."""
ROWS_AIMS = {"8": 4.0, "16": 5.5}
"""Times the tokens of one answer alone, by the number of answers that take their steps together."""
GAP_AIM_MS = 30.0
"""What the 99th percentile between two tokens may be beyond a step, while pictures arrive."""
MEMORY_AIM = 0.05
"""How far measured memory may be from what is announced."""


def derive(report: dict[str, Any]) -> None:
    """Add `limit_ms` and `fraction_of_limit`, `times_transformers`, and `aims` to a report."""
    if limits := report.get("limits"):
        _add_limits(report.get("shapes", {}), limits)
    for found in report.get("shapes", {}).values():
        peer = found.get("transformers", {})
        times = {name: times_transformers(model, peer) for name, model in found.get("models", {}).items()}
        found["times_transformers"] = {name: one for name, one in times.items() if one}
        for rows in found.get("rows", {}).values():
            _add_times_one(rows.get("steps", {}))
    report["aims"] = list(_aims(report))


def _add_limits(figures: Any, limits: dict[str, Any]) -> None:
    """To every time that stands with bytes or operations: how long those take at the measured rates."""
    if isinstance(figures, list):
        for one in figures:
            _add_limits(one, limits)
    if not isinstance(figures, dict):
        return
    for one in figures.values():
        _add_limits(one, limits)
    for what, rate in (("bytes", "copy_bytes_per_s"), ("operations", "matrix_ops_per_s")):
        if figures.get(what) and figures.get("ms") and limits.get(rate):
            figures["limit_ms"] = 1e3 * figures[what] / limits[rate]
            figures["fraction_of_limit"] = figures["limit_ms"] / figures["ms"]


def _add_times_one(steps: dict[str, Any]) -> None:
    """To every number of rows: how many times the tokens a second of one, and how many times the limits allow."""
    one = steps.get("1", {})
    for step in steps.values():
        if ratio := _ratio(step, one, "tokens_per_s"):
            step["times_one"] = ratio
        if step.get("limit_ms") and one.get("limit_ms"):
            count = round(step["tokens_per_s"] * step["ms"] / 1e3)
            step["limit_times"] = count * one["limit_ms"] / step["limit_ms"]


def times_transformers(model: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
    """How many times faster, and for memory how many times smaller, than transformers. Where both have a figure."""
    found: dict[str, Any] = {}
    for cache, contexts in peer.get("decode", {}).items():
        for context, entry in contexts.items():
            if ratio := _ratio(entry, model.get("decode", {}).get(context), "ms"):
                found.setdefault("decode", {}).setdefault(context, {})[cache] = ratio
    for kind, key in (("vision", "ms"), ("pictures", "first_token_ms")):
        for name, entry in peer.get(kind, {}).items():
            if ratio := _ratio(entry, model.get(kind, {}).get(name), key):
                found.setdefault(kind, {})[name] = ratio
    if ratio := _ratio(peer, model, "peak_memory_bytes"):
        found["memory"] = ratio
    return found


def _ratio(peer: dict[str, Any], ours: dict[str, Any] | None, key: str) -> float | None:
    above, below = peer.get(key), (ours or {}).get(key)
    return above / below if above and below else None


def _aims(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each aim of which there is a figure, with the measured limit beside it. None on another GPU than these two."""
    gpu = next((name for name in BANDWIDTH if name in report["machine"].get("gpu", "")), None)
    if gpu is None:
        return
    slower = BANDWIDTH["H200"] / BANDWIDTH[gpu]
    shape = report.get("shapes", {}).get(AIM_SHAPE, {})
    for name, model in shape.get("models", {}).items():
        aim_ms = DECODE_AIMS_MS.get(name, 0.0) * slower
        yield from _time(name, f"a token at {AIM_CONTEXT}", aim_ms, "decode", model, "decode", AIM_CONTEXT)
        yield from _time(name, f"{AIM_TILES} tiles of vision", VISION_AIM_MS, "vision", model, "vision", AIM_TILES)
        picture = model.get("pictures", {}).get(AIM_PICTURE, {})
        yield from _time(name, f"prefill of {AIM_PICTURE} tokens", PREFILL_AIM_MS, "prefill", picture, "prefill")
        needed, peak = model.get("needed_memory_bytes"), model.get("peak_memory_bytes")
        if needed and peak:
            off = 100 * abs(peak / needed - 1)
            yield _aim(f"{name}: memory, % from what is announced", 100 * MEMORY_AIM, off, off <= 100 * MEMORY_AIM)
    for name, rows in shape.get("rows", {}).items():
        for count, aim in ROWS_AIMS.items():
            if got := rows.get("steps", {}).get(count, {}).get("times_one"):
                yield _aim(f"{name}: {count} answers at once, times the tokens of one", aim, got, got >= aim)
        arrivals = rows.get("arrivals", {})
        if "gap_p99_ms" in arrivals:
            most = arrivals["gap_p50_ms"] + GAP_AIM_MS
            got = arrivals["gap_p99_ms"]
            yield _aim(f"{name}: 99th percentile between tokens while pictures arrive, ms", most, got, got <= most)
    caches = shape.get("times_transformers", {}).get(TIMES_AIM_DECODER, {}).get("decode", {}).get(AIM_CONTEXT, {})
    if caches and shape["transformers"].get("dtype") == "bf16":
        cache, got = min(caches.items(), key=lambda one: one[1])
        what = f"{TIMES_AIM_DECODER}: times transformers' decode speed at {AIM_CONTEXT}, {cache} cache"
        yield _aim(what, TIMES_AIM, got, got >= TIMES_AIM)


def _aim(what: str, aim: float, got: float, met: bool) -> dict[str, Any]:
    return {"what": what, "aim": aim, "got": got, "met": met}


def _time(
    name: str, what: str, aim_ms: float, phase: str, figures: dict[str, Any], *place: str
) -> Iterator[dict[str, Any]]:
    for key in place:
        figures = figures.get(key, {})
    if aim_ms and "ms" in figures:
        got = figures["ms"]
        aim = {"what": f"{name}: {what}", "aim_ms": aim_ms, "got_ms": got, "limit_ms": figures.get("limit_ms")}
        yield aim | {"met": got <= aim_ms, "model": name, "phase": phase, "bytes": figures.get("bytes")}
