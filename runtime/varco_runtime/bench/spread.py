"""Repeated measurements in a few numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
