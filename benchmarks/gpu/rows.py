"""Several answers at once: a step by its number of rows, gaps between tokens while pictures arrive, and the kernels.

A step of several rows reads the weights once for all of them, so eight give up to so many times the tokens of one as
keys and values leave room for: `limit_times`. Which kernels serve 2 to 16 rows is told by CUDA's profiler.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.gpu.limits import median_s
from benchmarks.gpu.model import lacking_kernels
from benchmarks.gpu.process import Tell, attempt
from benchmarks.gpu.stages import DECODE_STEPS, DRAWN, PICTURES, Setup
from varco_runtime import Varco
from varco_runtime.backend import GREEDY, BatchingBackend, ChoosesRows, GreedyBackend
from varco_runtime.bench.stages import endless
from varco_runtime.generation.sampling import Sampler
from varco_runtime.picture.packing import packing_plan

ROWS = (2, 4, 8, 16)
"""Answers that take a step together; the last is the number of slots."""
RUNNING, NUM_PICTURES = 7, 4
"""Answers under way while so many pictures are asked about, one after the other."""
SMALL_PICTURE = (60, 90)
"""Height and width, where the others do not fit."""
ROOM = 100
"""Positions beside a picture, or an answer: the prompt's."""
MAX_STALL_MS = 30.0
KERNEL_CALLS = 8


def measure_rows(setup: Setup, tell: Tell) -> None:
    """Make the bundle unless it is there, load it with slots, and tell what steps of 1 to 16 rows take."""
    if reason := lacking_kernels(setup.provider, setup.decoder):
        tell(("does_not_apply",), reason)
        return
    varco = Varco.load(setup.make(), provider=setup.provider, slots=ROWS[-1], max_stall_ms=MAX_STALL_MS)
    rows = Rows(varco, setup)
    tell(("load_s",), varco.load_s)
    tell(("on",), varco.backend.description)
    for count in (1, *ROWS):
        attempt(tell, ("steps", str(count)), lambda count=count: rows.step(count))  # type: ignore[misc]
    attempt(tell, ("drawn", "8"), lambda: rows.drawn(8))
    attempt(tell, ("arrivals",), rows.arrivals)
    from benchmarks.gpu.profile import kernels_of  # last of all: CUDA's profiler is in the process from then on

    phases = {f"{count} rows": (lambda count=count: rows.greedy(count), KERNEL_CALLS) for count in (1, *ROWS)}  # type: ignore[misc]
    kernels_of(phases, setup.provider, lambda place, figure: tell(("kernels", *place), figure))


class Rows:
    """One model with slots."""

    def __init__(self, varco: Varco, setup: Setup) -> None:
        self.varco = varco
        self._context = setup.contexts[0]
        self._max_context = setup.max_context
        self._rng = np.random.default_rng(0)

    def greedy(self, count: int) -> None:
        """Take one step of so many rows, all behind the same context."""
        backend = self.varco.backend
        if count == 1:
            assert isinstance(backend, GreedyBackend)
            backend.decode_greedy(1, self._context)
        else:
            assert isinstance(backend, ChoosesRows)
            backend.decode_chosen_rows([1] * count, [self._context] * count, [GREEDY] * count)

    def step(self, count: int) -> dict[str, Any]:
        """Time a step of so many greedy rows; `bytes` are the weights once, and each row's keys and values."""
        manifest = self.varco.bundle.manifest
        self._select(0)
        ms = 1e3 * median_s(lambda: self.greedy(count), DECODE_STEPS - 2)
        num_bytes = manifest.decoder.weight_bytes + count * self._context * manifest.kv_bytes_per_token
        return {"ms": ms, "tokens_per_s": 1e3 * count / ms, "bytes": num_bytes}

    def drawn(self, count: int) -> dict[str, Any]:
        """Time a step of so many rows that are drawn by temperature and top-p."""
        backend, manifest = self.varco.backend, self.varco.bundle.manifest
        assert isinstance(backend, ChoosesRows)
        draws = [Sampler(DRAWN, manifest.generation).draw(manifest.model.vocab_size) for _ in range(count)]
        positions = [self._context] * count
        seconds = median_s(lambda: backend.decode_chosen_rows([1] * count, positions, draws), DECODE_STEPS - 2)
        return {"ms": 1e3 * seconds}

    def arrivals(self) -> dict[str, Any]:
        """Time the gaps between the tokens of answers under way while new pictures are encoded and prefilled."""
        varco, times = self.varco, [list[float]() for _ in range(RUNNING)]
        varco.session.bundle = endless(varco.bundle)
        sizes = (one for one in (*PICTURES.values(), SMALL_PICTURE) if self._holds(one))
        size_hw = next(sizes, None)
        if size_hw is None:
            return {"does_not_apply": "no picture fits --max-context"}
        arrived, errors = threading.Event(), list[BaseException]()

        def run(index: int) -> None:
            try:
                while not arrived.is_set():
                    stream = varco.stream(None, f"Question {index}?", max_new_tokens=self._room(), speculate=False)
                    for _ in stream:
                        if arrived.is_set():
                            stream.cancel()
                    times[index] += [*stream.token_times, float("nan")]  # between two answers there is no gap
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(index,)) for index in range(RUNNING)]
        for thread in threads:
            thread.start()
        spans: list[tuple[float, float]] = []
        try:
            for _ in range(NUM_PICTURES):
                picture = Image.fromarray(self._rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8))
                began = time.perf_counter()
                varco.ask(picture, "Describe this image.", max_new_tokens=2)
                spans.append((began, time.perf_counter()))
        finally:
            arrived.set()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
        gaps = [
            after - before
            for one in times
            for before, after in itertools.pairwise(one)
            if any(began <= after and before <= ended for began, ended in spans)
        ]
        step_ms = 1e3 * float(np.median(gaps))
        return {
            "gaps": len(gaps),
            "gap_p50_ms": step_ms,
            "gap_p99_ms": 1e3 * float(np.percentile(gaps, 99)),
            "max_stall_ms": MAX_STALL_MS,
            "answer_s": float(np.median([ended - began for began, ended in spans])),
        }

    def _holds(self, size_hw: tuple[int, int]) -> bool:
        plan = packing_plan(size_hw, self.varco.bundle.manifest.image)
        return plan.num_tokens + ROOM < self._max_context

    def _room(self) -> int:
        return self._max_context - ROOM

    def _select(self, slot: int) -> None:
        backend = self.varco.backend
        assert isinstance(backend, BatchingBackend)
        backend.select_slot(slot)
