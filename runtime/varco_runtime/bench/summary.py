"""Samples summed up: rates, bytes against the limit, and what dominates an answer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from varco_runtime.bench.bandwidth import last_level_cache_bytes
from varco_runtime.bench.limit import Limit
from varco_runtime.bench.samples import Percentiles, Samples, Spread
from varco_runtime.bundle.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds of each stage of one answer, reckoned from a part of it where that is marked.

    `vision_tile_s` is the vision tower over one tile, `vision_s` over all of them, without the projector where that
    could be timed; `projector_s` is over all tiles, from one. `ttft_s` is all up to the first token; where it was not
    measured, the sum of what was.
    """

    preprocess_s: Spread | None
    vision_tile_s: Spread | None
    vision_s: Spread | None
    projector_s: Spread | None
    packing_s: Spread | None
    prefill_s: Spread | None
    ttft_s: Spread | None
    decode_s: Spread | None


@dataclass(frozen=True, slots=True)
class Decode:
    """`tpot_s` is the mean time per token of a repetition; `itl_s` the time of each token; `loop_s` what `Varco.ask`
    adds to a token beyond the backend's step."""

    tokens_per_s: Spread | None
    tpot_s: Spread | None
    itl_s: Percentiles | None
    loop_s: Spread | None
    context_tokens: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one token reads, and how near the limit that comes.

    `kv_bytes` are the keys and values at the context of `Decode`. `fraction` is the rate at which the median token
    read them, over the limit; `is_cached` says that the weights fit the processor's cache, so that the limit is not
    theirs. Both None without a limit.
    """

    weight_bytes: int
    kv_bytes: int
    total_bytes: int
    fraction: float | None
    is_cached: bool | None


@dataclass(frozen=True, slots=True)
class Dominant:
    """The stage with the largest share of an answer's time (0 to 1), all shares, and one line that says why."""

    stage: str
    share: float
    shares: dict[str, float]
    line: str


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that follows from the samples."""

    stages: Stages
    prefill_tokens_per_s: Spread | None
    decode: Decode
    traffic: Traffic
    dominant: Dominant


def summarize(samples: Samples, manifest: Manifest, limit: Limit | None) -> Summary:
    """`limit` is None where it could not be measured."""
    stages = _stages(samples)
    rate = Spread.of([samples.prefill_tokens / seconds for seconds in samples.prefill_s], samples.is_prefill_part)
    tokens_per_s = Spread.of([1 / seconds for seconds in samples.tpot_s])
    decode = Decode(
        tokens_per_s,
        Spread.of(samples.tpot_s),
        Percentiles.of(samples.itl_s),
        Spread.of(samples.loop_s),
        samples.context_tokens,
    )
    traffic = _traffic(samples, manifest, decode, limit)
    return Summary(stages, rate, decode, traffic, _dominant(samples, stages, rate, decode, traffic))


def _stages(samples: Samples) -> Stages:
    projector_tile_s = Spread.of(samples.projector_tile_s)
    projector = projector_tile_s.median if projector_tile_s else 0.0
    tile_s = [max(seconds / samples.encoded_tiles - projector, 0.0) for seconds in samples.encode_s]
    whole_prompts = [seconds * samples.prompt_tokens / samples.prefill_tokens for seconds in samples.prefill_s]
    stages = Stages(
        preprocess_s=Spread.of(samples.preprocess_s),
        vision_tile_s=Spread.of(tile_s),
        vision_s=Spread.of(
            [seconds * samples.num_tiles for seconds in tile_s], samples.encoded_tiles < samples.num_tiles
        ),
        projector_s=Spread.of(
            [seconds * samples.num_tiles for seconds in samples.projector_tile_s], samples.num_tiles > 1
        ),
        packing_s=Spread.of(samples.packing_s),
        prefill_s=Spread.of(whole_prompts, samples.is_prefill_part),
        ttft_s=Spread.of(samples.ttft_s),
        decode_s=Spread.of(
            [seconds * samples.new_tokens for seconds in samples.tpot_s],
            len(samples.itl_s) < samples.new_tokens * samples.repetitions,
        ),
    )
    return stages if stages.ttft_s else dataclasses.replace(stages, ttft_s=_reckoned_ttft(stages))


def _reckoned_ttft(stages: Stages) -> Spread | None:
    """The sum of the stages before the first token, as far as there are any."""
    parts = (stages.preprocess_s, stages.vision_s, stages.projector_s, stages.packing_s, stages.prefill_s)
    found = [part.median for part in parts if part is not None]
    return Spread.of([sum(found)], is_reckoned=True) if stages.prefill_s else None


def _traffic(samples: Samples, manifest: Manifest, decode: Decode, limit: Limit | None) -> Traffic:
    weights = manifest.decoder.weight_bytes
    kv = round(manifest.kv_bytes_per_token * samples.context_tokens)
    if limit is None or decode.itl_s is None:
        return Traffic(weights, kv, weights + kv, None, None)
    fraction = (weights + kv) / decode.itl_s.p50 / limit.bytes_per_s
    return Traffic(weights, kv, weights + kv, fraction, weights + kv <= last_level_cache_bytes())


def _dominant(
    samples: Samples, stages: Stages, prefill_rate: Spread | None, decode: Decode, traffic: Traffic
) -> Dominant:
    loop_s = Spread.of(samples.loop_s)
    named = {
        "preprocessing": stages.preprocess_s,
        "vision": stages.vision_s,
        "projector": stages.projector_s,
        "packing": stages.packing_s,
        "prefill": stages.prefill_s,
        "decode": stages.decode_s,
        "loop": Spread.of([loop_s.median * samples.new_tokens]) if loop_s else None,
    }
    seconds = {name: spread.median for name, spread in named.items() if spread is not None}
    whole = sum(seconds.values())
    shares = {name: value / whole for name, value in seconds.items()}
    stage = max(shares, key=lambda name: shares[name])
    why = _why(stage, seconds[stage], samples, stages, prefill_rate, decode, traffic)
    line = f"{stage.capitalize()} dominates, {shares[stage]:.0%} of an answer of {samples.new_tokens} tokens: {why}"
    if samples.is_part:
        line += " Reckoned from parts, which ~ marks."
    return Dominant(stage, shares[stage], shares, line)


def _why(
    stage: str,
    seconds: float,
    samples: Samples,
    stages: Stages,
    prefill_rate: Spread | None,
    decode: Decode,
    traffic: Traffic,
) -> str:
    if stage == "vision" and stages.vision_tile_s:
        return f"{samples.num_tiles} tiles at {_time(stages.vision_tile_s.median)} each."
    if stage == "prefill" and prefill_rate:
        return f"{samples.prompt_tokens:,} tokens at {prefill_rate.median:,.0f} per second."
    if stage != "decode" or decode.itl_s is None:
        return f"{_time(seconds)}."
    each = f"each token takes {_time(decode.itl_s.p50)} and reads {traffic.total_bytes / 1e6:,.1f} MB"
    if traffic.fraction is None:
        return f"{each}."
    if traffic.is_cached:
        return f"{each}, which fits the processor's cache, so the memory's bandwidth is not what holds it back."
    return f"{each}, at {traffic.fraction:.0%} of the measured bandwidth."


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
