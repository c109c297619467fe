"""Several answers at once: how many tokens a second, how long each waits, and what the memory's bandwidth would allow.

All ask about one picture, which is encoded and prefilled once before: decode steps are what several answers share.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from varco_runtime.backend import CapturesGraphs
from varco_runtime.backends.providers import check_provider
from varco_runtime.bench.limit import Limit, measure_limit
from varco_runtime.bench.run import LIMIT_SECONDS, Options
from varco_runtime.bench.stages import Progress, endless
from varco_runtime.system.processor import usable_cores
from varco_runtime.varco import Varco

COUNTS = (1, 2, 4, 8, 16, 32, 64)
"""Answers at once that are measured, as far as there are slots."""


@dataclass(frozen=True, slots=True)
class AtOnce:
    """So many answers at once.

    Args:
        answers: How many.
        tokens_per_s: Tokens of all answers, from the first question to the last token.
        answers_per_s: Answers in the same time.
        ttft_p50_s: The median time to a first token.
        ttft_p99_s: Its 99th percentile.
        gap_p50_s: The median time between two tokens of one answer.
        gap_p99_s: Its 99th percentile.
        limit_tokens_per_s: What reading weights and caches once for each step allows; None without a limit.
    """

    answers: int
    tokens_per_s: float
    answers_per_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    gap_p50_s: float
    gap_p99_s: float
    limit_tokens_per_s: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """The measurements, and what they were taken on.

    Args:
        rows: One for each number of answers, from 1 on.
        device: The device and provider.
        slots: How many answers the model takes at once.
        slots_line: Why, where that was left to the model.
        new_tokens: Tokens of an answer.
        load_s: Seconds that loading took, what is captured then included.
        graphs_line: How many steps are captured after all rounds, empty where none is.
        limit: The bandwidth of the memory; None where it could not be measured.
    """

    rows: list[AtOnce]
    device: str
    slots: int
    slots_line: str
    new_tokens: int
    limit: Limit | None
    load_s: float = 0.0
    graphs_line: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document."""
        return asdict(self)


def measure_at_once(
    options: Options,
    slots: int | str,
    progress: Progress,
    find_limit: Callable[[str, int, float], Limit | str] = measure_limit,
) -> Report:
    """Load a bundle with slots and measure 1, 2, 4, ... answers at once.

    Args:
        options: What to measure; each number of answers is measured `repetitions` times, of which the best counts.
        slots: The most answers at once, or `auto`.
        progress: Told what happens, a sentence each.
        find_limit: What measures the limit, as `measure_limit` does.

    Raises:
        VarcoError: As `Varco.load` and `Varco.ask` raise it.
    """
    check_provider(options.provider)
    progress("Loading the bundle.")
    varco = Varco.load(options.bundle, options.provider, options.max_context, options.threads, slots=slots)
    device = varco.bundle.manifest.device if options.provider == "auto" else options.provider
    progress("Measuring the memory's bandwidth.")
    measured = find_limit(device, usable_cores(), LIMIT_SECONDS)
    limit = measured if isinstance(measured, Limit) else None
    varco.session.bundle = endless(varco.bundle)
    progress("Warming up.")
    context = _ask_at_once(varco, options, 1).num_positions
    counts = [count for count in COUNTS if count < varco.slots] + [varco.slots]
    rounds: dict[int, list[_Round]] = {count: [] for count in counts}
    for repetition in range(options.repetitions):  # interleaved: the machine's moods come to all of them
        progress(f"Asking, round {repetition + 1} of {options.repetitions}.")
        for count in counts:
            rounds[count].append(_ask_at_once(varco, options, count))
    rows = [_row(min(rounds[count], key=lambda one: one.seconds), varco, context, limit) for count in counts]
    backend = varco.backend
    graphs_line = backend.graphs_line if isinstance(backend, CapturesGraphs) else ""
    about = backend.description, varco.slots, varco.slots_line, options.new_tokens, limit, varco.load_s, graphs_line
    return Report(rows, *about)


@dataclass(frozen=True, slots=True)
class _Round:
    """Answers that began together: their token times from then on, the seconds in all, and positions at the end."""

    times: list[list[float]]
    seconds: float
    num_positions: int


def _ask_at_once(varco: Varco, options: Options, count: int) -> _Round:
    began, errors = list[float](), list[BaseException]()
    start = threading.Barrier(count, lambda: began.append(time.perf_counter()))
    times: list[list[float]] = [[] for _ in range(count)]
    lengths = [0] * count

    def ask(index: int) -> None:
        try:
            stream = varco.stream(options.picture, f"{options.prompt} ({index})", max_new_tokens=options.new_tokens)
            start.wait()
            answer = stream.run()
            times[index] = stream.token_times
            lengths[index] = answer.usage.prompt_tokens + answer.usage.completion_tokens
        except BaseException as error:
            start.abort()  # nobody waits for one that cannot begin
            if not isinstance(error, threading.BrokenBarrierError):
                errors.append(error)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    relative = [[at - began[0] for at in one] for one in times]
    return _Round(relative, max(one[-1] for one in relative), max(lengths))


def _row(best: _Round, varco: Varco, context: int, limit: Limit | None) -> AtOnce:
    count = len(best.times)
    num_tokens = sum(len(one) for one in best.times)
    first = np.array([one[0] for one in best.times])
    gaps = np.concatenate([np.diff(one) for one in best.times])
    weight_bytes = varco.bundle.manifest.decoder.weight_bytes
    step_bytes = weight_bytes + count * varco.kv_bytes_per_token * context
    return AtOnce(
        answers=count,
        tokens_per_s=num_tokens / best.seconds,
        answers_per_s=count / best.seconds,
        ttft_p50_s=float(np.percentile(first, 50)),
        ttft_p99_s=float(np.percentile(first, 99)),
        gap_p50_s=float(np.percentile(gaps, 50)),
        gap_p99_s=float(np.percentile(gaps, 99)),
        limit_tokens_per_s=None if limit is None else count * limit.bytes_per_s / step_bytes,
    )
