"""What a benchmark measured, and repeated measurements in a few numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from varco_runtime.answer.answer import Answer


@dataclass(slots=True)
class Samples:
    """Seconds, one entry per repetition, except `itl_s` and `loop_s`: one per decoded token.

    `encode_s` is vision tower and projector over `encoded_tiles` of `num_tiles` tiles, `projector_tile_s` the projector
    over one. `ttft_s` runs from the picture to the choice of the first token, the words' share of the prompt apart.
    `prefill_s` is for `prefill_tokens` of `prompt_tokens`: a part is one chunk at the beginning and one at the end of
    the prompt, between which the cost of a position grows evenly. `itl_s` are the times between tokens with the
    backend driven directly, `tpot_s` their mean per repetition, at a context of `context_tokens`. `loop_s` is the time
    between two calls of the backend while `Varco.ask` answers without drafts: choosing the token, its text and regions,
    the stream. `answer` is what `Varco.ask` gave, None where the question was measured in part. `notes` say what was
    cut or left out, and why.
    """

    load_s: float
    new_tokens: int
    num_tiles: int
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
        """Whether only a part of the prompt was measured."""
        return self.prefill_tokens < self.prompt_tokens

    @property
    def is_part(self) -> bool:
        """Whether a part of the pictures or of the prompt stands for the whole."""
        return self.is_prefill_part or self.encoded_tiles < self.num_tiles


@dataclass(frozen=True, slots=True)
class Spread:
    """What `count` values are like, in the unit of its name's ending.

    `std` is the sample's standard deviation, None of one value; percentiles are linearly interpolated. `is_reckoned`:
    the values were scaled from a part, or added up, and not measured as they stand.
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
        """None of no values."""
        if not values:
            return None
        std = statistics.stdev(values) if len(values) > 1 else None
        p90, p99 = (float(value) for value in np.percentile(values, (90, 99)))
        return cls(statistics.median(values), min(values), max(values), std, p90, p99, len(values), is_reckoned)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """The 50th, 90th and 99th percentile of `count` values, linearly interpolated, and their standard deviation."""

    p50: float
    p90: float
    p99: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles | None:
        """None of no values."""
        spread = Spread.of(values)
        return None if spread is None else cls(spread.median, spread.p90, spread.p99, spread.std, spread.count)
