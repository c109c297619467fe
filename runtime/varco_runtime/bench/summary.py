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
    """Seconds of each stage of one answer, reckoned from a part of it where that is marked; None: not measured.

    Args:
        preprocess_s: From the picture to tiles or pixel values.
        vision_tile_s: The vision tower over one tile, without the projector where that could be timed.
        vision_s: The vision tower over all tiles, likewise.
        projector_s: The projector over all tiles, from one.
        packing_s: From features to image tokens.
        prefill_s: The prompt.
        ttft_s: All up to the first token; where that was not measured, the sum of what was.
        decode_s: The answer.
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
    """How fast tokens come; None where that was not measured.

    Args:
        tokens_per_s: Tokens per second of a repetition.
        tpot_s: The mean time per token of a repetition.
        itl_s: The time of each token.
        loop_s: What `Varco.ask` adds to a token beyond the backend's step.
        context_tokens: The context at which tokens were decoded, on average.
    """

    tokens_per_s: Spread | None
    tpot_s: Spread | None
    itl_s: Percentiles | None
    loop_s: Spread | None
    context_tokens: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one token reads, and how near the limit that comes.

    Args:
        weight_bytes: The decoder's weights.
        kv_bytes: The keys and values at the context of `Decode`.
        total_bytes: Both.
        fraction: The rate at which the median token read them, over the limit; None without a limit.
        is_cached: Whether they fit the processor's cache, so that the limit is not theirs; None without a limit.
    """

    weight_bytes: int
    kv_bytes: int
    total_bytes: int
    fraction: float | None
    is_cached: bool | None


@dataclass(frozen=True, slots=True)
class Dominant:
    """The stage that takes most of an answer's time.

    Args:
        stage: Its name.
        share: Its share, 0 to 1.
        shares: The shares of all stages, by name.
        line: One line that says why.
    """

    stage: str
    share: float
    shares: dict[str, float]
    line: str


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that follows from the samples.

    Args:
        stages: Seconds of each stage.
        prefill_tokens_per_s: Tokens of the prompt per second; None where no prompt was measured.
        decode: How fast tokens come.
        traffic: Bytes that a token reads.
        dominant: The stage that takes most.
    """

    stages: Stages
    prefill_tokens_per_s: Spread | None
    decode: Decode
    traffic: Traffic
    dominant: Dominant


def summarize(samples: Samples, manifest: Manifest, limit: Limit | None) -> Summary:
    """Return what follows from the samples.

    Args:
        samples: The measurements.
        manifest: The bundle's.
        limit: The bandwidth of the memory; None where it could not be measured.
    """
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
    """Return the sum of the stages before the first token, as far as they were measured; None without a prefill."""
    parts = (stages.preprocess_s, stages.vision_s, stages.projector_s, stages.packing_s, stages.prefill_s)
    medians = [part.median for part in parts if part is not None]
    return Spread.of([sum(medians)], is_reckoned=True) if stages.prefill_s else None


def _traffic(samples: Samples, manifest: Manifest, decode: Decode, limit: Limit | None) -> Traffic:
    weights = manifest.decoder.weight_bytes
    kv = round(samples.kv_bytes_per_token * samples.context_tokens)
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
