"""Many outcomes as a few figures."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.load.client import Outcome


def percentiles(values: Sequence[float], scale: float = 1e3, digits: int = 2) -> dict[str, float] | None:
    """Return p50, p90, p99 and the largest, nearest rank; None of nothing.

    Args:
        values: What was measured, in seconds.
        scale: What it is multiplied by; milliseconds by default.
        digits: Digits behind the point.
    """
    if not values:
        return None
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(scale * ordered[math.ceil(share * len(ordered)) - 1], digits)

    return {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1)}


def gaps(outcome: Outcome) -> list[float]:
    """Return the seconds between two pieces of an answer."""
    return [later - earlier for earlier, later in itertools.pairwise(outcome.pieces_s)]


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return throughput, percentiles and refusals of outcomes that belong together.

    Args:
        outcomes: In any order; throughput is over the time from the first request to the last end.
    """
    answers = [one for one in outcomes if one.is_answer]
    wall_s = max(one.ended_s for one in outcomes) - min(one.started_s for one in outcomes)
    tpot = [one.tpot_s for one in answers if one.tpot_s is not None]
    faults = Counter(one.fault for one in outcomes if one.fault is not None)
    return {
        "requests": len(outcomes),
        "answers": len(answers),
        "statuses": dict(sorted(Counter(str(one.status) for one in outcomes).items())),
        "faults": dict(faults.most_common(5)),
        "wall_s": round(wall_s, 3),
        "answers_per_s": round(len(answers) / wall_s, 3),
        "tokens_per_s": round(sum(one.num_tokens for one in answers) / wall_s, 2),
        "ttft_ms": percentiles([one.ttft_s for one in answers]),
        "gap_ms": percentiles([gap for one in answers for gap in gaps(one)]),
        "tpot_ms": round(1e3 * statistics.median(tpot), 3) if tpot else None,
        "total_ms": percentiles([one.total_s for one in answers]),
        "refusal_ms": percentiles([one.total_s for one in outcomes if one.status == 429]),
    }
