"""A question on its way into the cache, in pieces: tiles are encoded and the prompt is prefilled.

A piece is as large as the time that is left allows, so that answers under way are not kept waiting; where there are
none, everything is one piece.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import numpy as np

from varco_runtime.backend import HoldsSlots, Progress, PromptInputs, reporting
from varco_runtime.dtypes import Array
from varco_runtime.engine.costs import WorkCosts
from varco_runtime.engine.job import Job, Model
from varco_runtime.generation.prefix_cache import Sequence as Held
from varco_runtime.media_encoder import Place, VisionTimes

Clock = Callable[[], float]


class Preparation:
    """Prepares one job after the other.

    Args:
        model: What prepares them.
        costs: What pieces take; counted here.
        left: Returns the seconds that are left for a piece, infinity where nobody waits.
        clock: The time in seconds.
    """

    def __init__(
        self, model: Model, costs: WorkCosts, left: Callable[[], float], clock: Clock = time.perf_counter
    ) -> None:
        self._model = model
        self._costs = costs
        self._left = left
        self._clock = clock

    def pieces(self, job: Job) -> Generator[float]:
        """Prepare a job that has a slot, a piece at a time; yield in between what the least next piece will take.

        Media whose positions are in the slot already are not encoded. A device that cannot hold all others at a time
        takes the prompt in runs: each group of media, and the prompt up to the next group. `logits` are those of the
        last positions.
        """
        model, ids = self._model, job.ids
        started = self._clock()
        job.prefill_s, job.vision = 0.0, VisionTimes()
        self._select(job)
        job.num_cached = done = model.memory.prepare(ids, job.spans, job.num_logits)
        job.prefill_s = self._clock() - started
        for place in job.places:
            model.memory.touch(place.span.key)
        groups = model.encoder.groups([place for place in job.places if place.span.end > done])
        ends = [*(group[0].span.start for group in groups[1:]), len(ids)]
        rows: list[Array] = []
        for index, end in enumerate(ends):
            inputs = yield from self._inputs(job, groups[index] if groups else [], end)
            found = yield from self._prefill(job, inputs, done)
            rows += found
            if found and not np.isfinite(found[-1][..., 0]).all():
                break
            done = end
        job.logits = rows[0] if len(rows) == 1 else np.concatenate(rows)

    def _inputs(self, job: Job, places: Sequence[Place], end: int) -> Generator[float, None, PromptInputs]:
        """Encode a group of media, and return the prompt up to `end` with their image tokens."""
        model, tokens, rows = self._model, None, {}
        if places:
            encoding = model.encoder.tokens_in_pieces(places, job.vision, _Pace(self, job))
            while tokens is None:
                try:
                    next(encoding)
                except StopIteration as last:
                    tokens, rows = last.value
                else:
                    yield self._costs.tile_s
            yield self._costs.chunk_s
        media_rows = np.full(end, -1, np.int64)
        for place in places:
            span = place.span
            media_rows[span.start : span.end] = np.arange(rows[span.key], rows[span.key] + span.end - span.start)
        return PromptInputs(np.array(job.ids[:end], dtype=np.int64), model.image_token_id, tokens, media_rows)

    def _prefill(self, job: Job, inputs: PromptInputs, done: int) -> Generator[float, None, list[Array]]:
        """Put a prompt's positions from `done` on into its slot, and return the logits that are wanted of them."""
        model, end_of_run, total = self._model, len(inputs.ids), len(job.ids)
        rows: list[Array] = []
        while done < end_of_run:
            started = self._clock()
            num_tokens = end_of_run - done
            if isinstance(model.backend, HoldsSlots):
                num_tokens = self._costs.tokens_within(self._left(), num_tokens)
            end = done + num_tokens
            wanted = max(0, end - max(done, total - job.num_logits))
            self._select(job)
            assert inputs.media_rows is not None, "Bug: a prompt without the rows of its media"
            piece = replace(inputs, ids=inputs.ids[:end], media_rows=inputs.media_rows[:end])
            with reporting(model.backend, job.progress):
                logits = model.backend.prefill(piece, done, max(1, wanted))
            seconds = self._clock() - started
            self._costs.count_tokens(num_tokens, seconds)
            job.prefill_s += seconds
            if not np.isfinite(logits[..., 0]).all():
                # Nor are the caches. The sampler refuses the logits, and the next question finds nothing cached.
                model.memory.forget_sequence()
                return [*rows, logits]
            if wanted:
                rows.append(logits)
            model.memory.sequence = Held(job.ids[:end], tuple(span for span in job.spans if span.start < end))
            done = end
            if done < end_of_run:
                yield self._costs.chunk_s
        return rows

    def _select(self, job: Job) -> None:
        assert job.slot is not None, "Bug: a job is prepared without a slot"
        self._model.memory.select(job.slot)

    # -- tiles, for `_Pace` -----------------------------------------------------------------------------------------

    def num_tiles(self, num_left: int) -> int:
        """Return how many of the tiles that are left there is time for."""
        return self._costs.tiles_within(self._left(), num_left)

    @contextmanager
    def tiles(self, job: Job, done: int, num_tiles: int, total: int) -> Iterator[None]:
        """Let tiles run and count what they took; the job's progress is told of all tiles of the medium."""
        started = self._clock()
        with reporting(self._model.backend, _shifted(job, done, total)):
            yield
        self._costs.count_tiles(num_tiles, self._clock() - started)


@dataclass(frozen=True, slots=True)
class _Pace:
    """See `media_encoder.Pace`: that of one job."""

    preparation: Preparation
    job: Job

    def num_tiles(self, num_left: int) -> int:
        return self.preparation.num_tiles(num_left)

    def tiles(self, done: int, num_tiles: int, total: int) -> AbstractContextManager[None]:
        return self.preparation.tiles(self.job, done, num_tiles, total)


def _shifted(job: Job, done: int, total: int) -> Progress | None:
    """Return a job's progress for a backend that counts the tiles of one piece."""
    progress = job.progress
    if progress is None:
        return None
    return lambda what, now, _: progress(what, done + now, total)
