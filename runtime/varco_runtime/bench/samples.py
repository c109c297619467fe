"""What a benchmark measured, and repeated measurements in a few numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from varco_runtime.answer.answer import Answer


@dataclass(slots=True)
class Samples:
    """Measurements of one question: seconds, one entry per repetition where nothing else is said.

    Args:
        load_s: Loading the model, once.
        new_tokens: Tokens of an answer.
        num_tiles: Tiles of the picture.
        image_tokens: Image tokens of the picture.
        prompt_tokens: Tokens of the prompt, the picture's included.
        encoded_tiles: The tiles that `encode_s` is for.
        prefill_tokens: The tokens that `prefill_s` is for. A part is one chunk at the beginning and one at the end of
            the prompt, between which the cost of a position grows evenly.
        kv_bytes_per_token: What keys and values of one position take.
        context_tokens: The context at which `itl_s` were measured, on average.
        repetitions: How often the question was measured.
        preprocess_s: From the picture to tiles or pixel values, as the backend takes them.
        encode_s: Vision tower and projector over `encoded_tiles`.
        projector_tile_s: The projector over one tile, one entry per run.
        packing_s: From features to image tokens.
        prefill_s: The prompt, or `prefill_tokens` of it.
        ttft_s: From the picture to the choice of the first token, the words' share of the prompt apart.
        itl_s: Between tokens with the backend driven directly, one entry per token.
        tpot_s: The mean of `itl_s`.
        loop_s: Between two calls of the backend while `Varco.ask` answers without drafts, one entry per token: choosing
            the token, its text and regions, the stream.
        answer: What `Varco.ask` gave; None where the question was measured in part.
        host_peak_bytes: The process's peak memory; None where the system does not say.
        notes: What was cut or left out, and why.
    """

    load_s: float
    new_tokens: int
    num_tiles: int
    kv_bytes_per_token: int = 0
    image_tokens: int = 0
    prompt_tokens: int = 0
    encoded_tiles: int = 0
    prefill_tokens: int = 0
    context_tokens: float = 0.0
    repetitions: int = 0
    preprocess_s: list[float] = field(default_factory=list)
    encode_s: list[float] = field(default_factory=list)
    projector_tile_s: list[float] = field(default_factory=list)
    packing_s: list[float] = field(default_factory=list)
    prefill_s: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    itl_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)
    loop_s: list[float] = field(default_factory=list)
    answer: Answer | None = None
    host_peak_bytes: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def is_prefill_part(self) -> bool:
        """Return whether only a part of the prompt was measured."""
        return self.prefill_tokens < self.prompt_tokens

    @property
    def is_part(self) -> bool:
        """Return whether a part of the pictures or of the prompt stands for the whole."""
        return self.is_prefill_part or self.encoded_tiles < self.num_tiles


@dataclass(frozen=True, slots=True)
class Spread:
    """What several values are like, in the unit that the spread's name ends in.

    Args:
        median: The median.
        min: The least.
        max: The greatest.
        std: The sample's standard deviation; None of one value.
        p90: The 90th percentile, linearly interpolated.
        p99: The 99th.
        count: How many values there are.
        is_reckoned: Whether they were scaled from a part, or added up, and not measured as they stand.
    """

    median: float
    min: float
    max: float
    std: float | None
    p90: float
    p99: float
    count: int
    is_reckoned: bool = False

    @classmethod
    def of(cls, values: Sequence[float], is_reckoned: bool = False) -> Spread | None:
        """Return the spread of some values; None of no values."""
        if not values:
            return None
        std = statistics.stdev(values) if len(values) > 1 else None
        p90, p99 = (float(value) for value in np.percentile(values, (90, 99)))
        return cls(statistics.median(values), min(values), max(values), std, p90, p99, len(values), is_reckoned)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles of several values, linearly interpolated.

    Args:
        p50: The 50th percentile.
        p90: The 90th.
        p99: The 99th.
        std: The sample's standard deviation; None of one value.
        count: How many values there are.
    """

    p50: float
    p90: float
    p99: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles | None:
        """Return the percentiles of some values; None of no values."""
        spread = Spread.of(values)
        return None if spread is None else cls(spread.median, spread.p90, spread.p99, spread.std, spread.count)
