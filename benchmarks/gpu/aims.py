"""What follows from the figures: fractions of the device's limits, how many times transformers, and the aims.

Everything here is computed from the report alone, and anew each time something was added to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

AIM_GPU, AIM_SHAPE = "H200", "14b"
DECODE_AIMS_MS = {"bf16": 7.7, "int4": 2.4, "fp8": 4.1}
"""A token at `AIM_CONTEXT`, with a head in 16 bits."""
AIM_CONTEXT = "1024"
VISION_AIM_MS, AIM_TILES = 17.0, "10"
PREFILL_AIM_MS, AIM_PICTURE = 160.0, "2.9k"
PREFILL_AIM_DECODERS = ("fp16", "bf16")
TIMES_AIM, TIMES_AIM_DECODER = 3.0, "int4"
"""Decode speed over transformers' in bf16, the faster of its caches."""


def derive(report: dict[str, Any]) -> None:
    """Add `limit_ms` and `fraction_of_limit`, `times_transformers`, and `aims` to a report."""
    if limits := report.get("limits"):
        _add_limits(report.get("shapes", {}), limits)
    for found in report.get("shapes", {}).values():
        peer = found.get("transformers", {})
        times = {name: times_transformers(model, peer) for name, model in found.get("models", {}).items()}
        found["times_transformers"] = {name: one for name, one in times.items() if one}
    report["aims"] = list(_aims(report)) if AIM_GPU in report["machine"].get("gpu", "") else []


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
    """Each aim of which there is a figure, with the measured limit beside it."""
    shape = report.get("shapes", {}).get(AIM_SHAPE, {})
    for name, model in shape.get("models", {}).items():
        yield from _time(f"{name}: a token at {AIM_CONTEXT}", DECODE_AIMS_MS.get(name), model, "decode", AIM_CONTEXT)
        yield from _time(f"{name}: {AIM_TILES} tiles of vision", VISION_AIM_MS, model, "vision", AIM_TILES)
        if name in PREFILL_AIM_DECODERS:
            picture = model.get("pictures", {}).get(AIM_PICTURE, {})
            yield from _time(f"{name}: prefill of {AIM_PICTURE} tokens", PREFILL_AIM_MS, picture, "prefill")
    caches = shape.get("times_transformers", {}).get(TIMES_AIM_DECODER, {}).get("decode", {}).get(AIM_CONTEXT, {})
    if caches and shape["transformers"].get("dtype") == "bf16":
        cache, got = min(caches.items(), key=lambda one: one[1])
        what = f"{TIMES_AIM_DECODER}: times transformers' decode speed at {AIM_CONTEXT}, {cache} cache"
        yield {"what": what, "aim": TIMES_AIM, "got": got, "met": got >= TIMES_AIM}


def _time(what: str, aim_ms: float | None, figures: dict[str, Any], *place: str) -> Iterator[dict[str, Any]]:
    for name in place:
        figures = figures.get(name, {})
    if aim_ms and "ms" in figures:
        got = figures["ms"]
        yield {"what": what, "aim_ms": aim_ms, "got_ms": got, "limit_ms": figures.get("limit_ms"), "met": got <= aim_ms}
