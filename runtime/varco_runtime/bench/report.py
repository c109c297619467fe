"""What `varco bench` says: one JSON document for machines, one table for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from varco_runtime.bench.limit import Limit
from varco_runtime.bench.samples import Samples, Spread
from varco_runtime.bench.summary import Summary
from varco_runtime.bundle.manifest import Manifest

FORMAT_VERSION = 1
"""The JSON document's version, raised when a field changes its meaning or goes away."""
BUSY_CORES = 0.2
"""The cores that other programs may take before the table says so."""

Row = tuple[str, str, str, str, str, str]
"""Name, median, standard deviation, least, 90th percentile, greatest."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What was measured, and on what.

    Args:
        bundle: The bundle's name.
        digest: The digest of its manifest.
        bundle_bytes: The size of all its files.
        provider: The provider that runs it.
        device: The device, for people.
        threads: Threads of the networks.
        max_context: Positions of the cache.
        seconds: What everything but loading was to take.
        picture: The picture's name.
        picture_size: Its width and height in pixels.
        copies: How many copies of it were asked about at a time.
        is_video: Whether they were the frames of a video.
        prompt: The question.
        check_s: Seconds of hashing the bundle before it was loaded.
        other_cores: How many cores other programs kept busy meanwhile; None where nobody knows.
        device_bytes: The device memory that the bundle took; None on a CPU.
    """

    bundle: str
    digest: str
    bundle_bytes: int
    provider: str
    device: str
    threads: int
    max_context: int
    seconds: float
    picture: str
    picture_size: tuple[int, int]
    copies: int
    is_video: bool
    prompt: str
    check_s: float
    other_cores: float | None
    device_bytes: int | None


def document(
    setup: Setup, samples: Samples, summary: Summary, manifest: Manifest, limit: Limit | None
) -> dict[str, Any]:
    """Return the JSON document, as docs/bench.md describes it.

    Times are in seconds, sizes in bytes; null stands where something was not measured, and `notes` say why.

    Args:
        setup: What was measured, and on what.
        samples: The measurements.
        summary: What follows from them.
        manifest: The bundle's.
        limit: The bandwidth of the memory; None where it could not be measured.
    """
    answer = samples.answer
    return {
        "benchmark": "varco bench",
        "format_version": FORMAT_VERSION,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "bundle": {
            "name": setup.bundle,
            "sha256": setup.digest,
            "bytes": setup.bundle_bytes,
            "model": manifest.model.name,
            "num_parameters": manifest.model.num_parameters,
            "precision": {name: part.precision for name, part in manifest.components.items()},
        },
        "provider": setup.provider,
        "device": setup.device,
        "threads": setup.threads,
        "max_context": setup.max_context,
        "question": {
            "picture": setup.picture,
            "width": setup.picture_size[0],
            "height": setup.picture_size[1],
            "copies": setup.copies,
            "is_video": setup.is_video,
            "tiles": samples.num_tiles,
            "prompt": setup.prompt,
            "image_tokens": samples.image_tokens,
            "prompt_tokens": samples.prompt_tokens,
            "new_tokens": samples.new_tokens,
        },
        "measured": {
            "repetitions": samples.repetitions,
            "seconds_given": setup.seconds,
            "tiles": samples.encoded_tiles,
            "prefill_tokens": samples.prefill_tokens,
            "is_whole": answer is not None,
            "other_cores": setup.other_cores,
        },
        "limit": None if limit is None else asdict(limit),
        "check_s": setup.check_s,
        "load_s": samples.load_s,
        "stages": asdict(summary.stages),
        "prefill_tokens_per_s": None if summary.prefill_tokens_per_s is None else asdict(summary.prefill_tokens_per_s),
        "decode": asdict(summary.decode),
        "ask": None
        if answer is None
        else {
            **{name: getattr(answer.timings, name) for name in ("ttft_s", "tpot_s", "total_s")},
            "cached_tokens": answer.usage.cached_tokens,
            "completion_tokens": answer.usage.completion_tokens,
        },
        "memory": {
            "host_peak_bytes": samples.host_peak_bytes,
            "device_bytes": setup.device_bytes,
            "kv_bytes_max_context": samples.kv_bytes_per_token * setup.max_context,
        },
        "traffic_per_token": asdict(summary.traffic),
        "dominant": asdict(summary.dominant),
        "notes": samples.notes,
    }


def rows(samples: Samples, summary: Summary) -> list[Row]:
    """Return the table of everything timed. `~` marks what was reckoned from a part; one value has no spread."""
    stages, decode, answer = summary.stages, summary.decode, samples.answer
    table = [_single("load", samples.load_s)]
    table += [
        _spread(name, spread, _time)
        for name, spread in (
            ("preprocessing", stages.preprocess_s),
            ("vision, all tiles", stages.vision_s),
            ("vision, per tile", stages.vision_tile_s),
            ("projector", stages.projector_s),
            ("packing", stages.packing_s),
            ("prefill", stages.prefill_s),
        )
    ]
    table.append(_spread("prefill, tokens/s", summary.prefill_tokens_per_s, _rate))
    table.append(_spread("first token (TTFT)", stages.ttft_s, _time))
    if answer is not None:
        table.append(_single("TTFT, asked once", answer.timings.ttft_s))
    table.append(_spread("per token (TPOT)", decode.tpot_s, _time))
    if answer is not None:  # without drafts
        table.append(_single("TPOT, asked once", answer.timings.tpot_s))
    if decode.itl_s:
        itl = decode.itl_s
        std = "" if itl.std is None else _time(itl.std)
        table.append(("between tokens (ITL)", _time(itl.p50), std, "", _time(itl.p90), ""))
        table.append(_single("ITL, 99th percentile", itl.p99))
    table.append(_spread("decode, tokens/s", decode.tokens_per_s, _rate))
    table.append(_spread("loop beyond the step", decode.loop_s, _time))
    return table


def facts(setup: Setup, samples: Samples, summary: Summary, limit: Limit | None) -> list[tuple[str, str]]:
    """Return what stands below the table, as names and texts: the limit, bytes per token, memory."""
    traffic = summary.traffic
    near = "" if traffic.fraction is None else f", {traffic.fraction * 100:.2g} % of the limit"
    near = ", which fits the processor's cache" if traffic.is_cached else near
    read = f"{_mb(traffic.total_bytes)} ({_mb(traffic.weight_bytes)} weights, {_mb(traffic.kv_bytes)} cache){near}"
    num_words = samples.prompt_tokens - samples.image_tokens
    prompt = f"{samples.num_tiles} tiles, {samples.image_tokens:,} image + {num_words:,} text tokens"
    lines = [
        ("question", f"{prompt}, {samples.new_tokens} of the answer"),
        ("on", f"{setup.device}; {setup.provider}"),
        ("limit", "not measured" if limit is None else f"{limit.bytes_per_s / 1e9:.1f} GB/s, {limit.how}"),
        ("read per token", read),
        ("peak memory", "unknown" if samples.host_peak_bytes is None else _mb(samples.host_peak_bytes)),
    ]
    if setup.other_cores is not None and setup.other_cores >= BUSY_CORES:
        busy = f"kept {setup.other_cores:.1f} cores busy: times are upper bounds, the limit a lower one"
        lines.append(("other programs", busy))
    if setup.device_bytes is not None:
        lines.append(("device memory", _mb(setup.device_bytes)))
    return lines


def _single(name: str, seconds: float) -> Row:
    return name, _time(seconds), "", "", "", ""


def _spread(name: str, spread: Spread | None, text: Callable[[float], str]) -> Row:
    if spread is None:
        return name, "-", "", "", "", ""
    median = f"~{text(spread.median)}" if spread.is_reckoned else text(spread.median)
    if spread.std is None:
        return name, median, "", "", "", ""
    return name, median, text(spread.std), text(spread.min), text(spread.p90), text(spread.max)


def _time(seconds: float) -> str:
    """Return seconds as three digits and a unit: at most eight characters."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{_three_digits(seconds / scale)} {unit}"
    return f"{_three_digits(seconds * 1e6)} µs"


def _rate(per_s: float) -> str:
    return _three_digits(per_s)


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
