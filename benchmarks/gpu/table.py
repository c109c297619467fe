"""A report as a table for people: a column per precision and per cache of transformers, a row per figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

LABEL, COLUMN = 32, 22
NOTHING = "-"


def table(report: dict[str, Any]) -> Iterator[str]:
    """Lines: the machine and its limits, each shape, where its time goes, the pairs, and what is left out."""
    machine, limits = report["machine"], report.get("limits", {})
    yield f"{machine.get('gpu', 'CPU')}, onnxruntime {machine['onnxruntime']}, {report['max_context']:,} positions"
    for label, key, unit in (
        ("copy bandwidth, GB/s", "copy_bytes_per_s", 1e9),
        ("matrix rate, TFLOP/s", "matrix_ops_per_s", 1e12),
    ):
        if key in limits:
            yield f"{label:<{LABEL}}{limits[key] / unit:>{COLUMN},.2f}"
    yield "Beside a time: its fraction of the device's limit; how many times as fast as transformers, the faster cache."
    for shape, found in report.get("shapes", {}).items():
        yield ""
        yield from _shape(shape, found)
    if report.get("pairs"):
        yield ""
        yield from _pairs(report["pairs"])
    yield from (f"left out: {' '.join(place)}: {why}" for place, why in left_out(report))


def _pairs(pairs: dict[str, Any]) -> Iterator[str]:
    """A row per variant and what was timed, the default's time beside it."""
    first = next(iter(pairs.values()))
    yield f"{'pairs':<{LABEL}}" + f"{first.get('layers', 0)} layers of the model's widths, ms"
    names = list(dict.fromkeys(name for one in pairs.values() for name in one.get("ms", {})))
    for variant, found in pairs.items():
        times = found.get("ms", {})
        cells = (f"{name} {times[name]:.3f}" for name in names if isinstance(times.get(name), float))
        yield f"  {variant:<{LABEL - 2}}" + ", ".join(cells)


def left_out(figures: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Where something is missing, and why."""
    if isinstance(figures, dict):
        for key, value in figures.items():
            if key in ("left_out", "does_not_apply", "failed"):
                yield place, value
            else:
                yield from left_out(value, (*place, key))


def _shape(shape: str, found: dict[str, Any]) -> Iterator[str]:
    models, peer = found.get("models", {}), found.get("transformers", {})
    times = found.get("times_transformers", {})
    caches = list(peer.get("decode", {}))
    headings = [*models, *(f"transformers {cache}" for cache in caches)]
    yield f"{shape:<{LABEL}}" + "".join(f"{heading:>{COLUMN}}" for heading in headings)
    for label, place, key, scale in _rows(models, peer):
        cells = [
            _cell(_at(model, place), key, scale, _times(_at(times.get(name, {}), place)))
            for name, model in models.items()
        ]
        for index, cache in enumerate(caches):
            theirs = (place[0], cache, *place[1:]) if place[:1] == ("decode",) else place
            cells.append(_cell(_at(peer, theirs), key, scale, "") if theirs != place or index == 0 else NOTHING)
        yield f"  {label:<{LABEL - 2}}" + "".join(f"{cell:>{COLUMN}}" for cell in cells)
    for name, rows in found.get("rows", {}).items():
        yield from _several(f"{shape} {name}", rows)
    for kind, profiled in (
        ("kernels", {name: model.get("kernels", {}) for name, model in models.items()}),
        ("operators", found.get("operators", {})),
    ):
        for name, phases in profiled.items():
            yield from _profile(f"{shape} {name}", kind, phases)


def _several(label: str, rows: dict[str, Any]) -> Iterator[str]:
    """A row per number of answers at once, then the gaps and the kernels."""
    for count, step in rows.get("steps", {}).items():
        if "ms" not in step:
            continue
        times = f", {step['times_one']:.2f}x one" if "times_one" in step else ""
        limit = f" (limit {step['limit_times']:.2f}x)" if "limit_times" in step else ""
        yield f"{label}, {count} at once: {step['ms']:.2f} ms, {step['tokens_per_s']:,.0f} tokens/s{times}{limit}"
    if "ms" in (drawn := rows.get("drawn", {}).get("8", {})):
        yield f"{label}, 8 at once, drawn: {drawn['ms']:.2f} ms"
    if "gap_p99_ms" in (gaps := rows.get("arrivals", {})):
        yield (
            f"{label}, gaps while pictures arrive: {gaps['gap_p50_ms']:.2f} ms, 99th percentile "
            f"{gaps['gap_p99_ms']:.2f} ms, at most {gaps['max_stall_ms']:.0f} ms of other work"
        )
    yield from _profile(f"{label}, at once", "kernels", rows.get("kernels", {}))


def _rows(models: dict[str, Any], peer: dict[str, Any]) -> Iterator[tuple[str, Any, str, float]]:
    """Label, place, key and scale of every row that some column has."""

    def names(kind: str) -> list[str]:
        return list(dict.fromkeys(name for one in (*models.values(), peer) for name in one.get(kind, {})))

    contexts = [context for one in models.values() for context in one.get("decode", {})]
    contexts += [context for cache in peer.get("decode", {}).values() for context in cache]
    for context in dict.fromkeys(contexts):
        yield f"ms per token at {int(context):,}", ("decode", context), "ms", 1
    for step in names("steps"):
        label = "a token that is drawn, ms" if step == "drawn" else f"a step of {step}, ms"
        yield label, ("steps", step), "ms", 1
    for tiles in names("vision"):
        yield f"vision, ms for {tiles} tile{'s' if tiles != '1' else ''}", ("vision", tiles), "ms", 1
    for label in names("pictures"):
        picture = ("pictures", label)
        yield f"{label} tokens: vision, ms", picture, "vision_ms", 1
        yield f"{label} tokens: packing, ms", picture, "packing_ms", 1
        yield f"{label} tokens: prefill, ms", (*picture, "prefill"), "ms", 1
        yield f"{label} tokens: first token, ms", picture, "first_token_ms", 1
        yield f"{label} tokens: TTFT of a call, ms", picture, "ttft_ms", 1
    yield "loop overhead, ms per token", (), "loop_overhead_ms", 1
    yield "memory announced, GB", (), "needed_memory_bytes", 1e-9
    yield "peak memory, GB", (), "peak_memory_bytes", 1e-9
    yield "making, s", (), "make_s", 1
    yield "loading, s", (), "load_s", 1


def _at(figures: Any, place: tuple[str, ...]) -> Any:
    for name in place:
        figures = figures.get(name) if isinstance(figures, dict) else None
    return figures


def _cell(entry: Any, key: str, scale: float, times: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, int | float):
        return NOTHING
    fraction = f" {entry['fraction_of_limit']:.0%}" if key == "ms" and "fraction_of_limit" in entry else ""
    return f"{value * scale:,.2f}{fraction}{times if key in ('ms', 'first_token_ms') else ''}"


def _times(ratio: Any) -> str:
    """By cache, where there are several, the least: the faster cache."""
    if isinstance(ratio, dict):
        ratio = min((one for one in ratio.values() if isinstance(one, float)), default=None)
    return f" {ratio:.1f}x" if isinstance(ratio, float) else ""


def _profile(label: str, kind: str, phases: dict[str, Any]) -> Iterator[str]:
    for phase, found in phases.items():
        if not isinstance(found, dict) or "wall_ms" not in found:
            continue
        yield (
            f"{label}, {phase}, {kind}: {found['wall_ms']:.2f} ms, of which {found['total_ms']:.2f} in {kind} and "
            f"{found['gap_ms']:.2f} between them"
        )
        for row in found[kind]:
            read = f"{row['bytes'] / 1e6:>12,.1f} MB" if row.get("bytes") else ""
            limit = f"{row['limit_ms']:>9.3f} ms by bandwidth" if "limit_ms" in row else ""
            name = row.get("operator") or row["kernel"]
            yield f"  {name[:60]:<60}{row['count']:>8.0f} x{row['ms']:>10.3f} ms{read}{limit}"
