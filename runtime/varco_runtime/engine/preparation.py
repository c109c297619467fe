"""A question on its way into the cache, in pieces: tiles are encoded and the prompt is prefilled.

A piece is as large as the time that is left allows, so that answers under way are not kept waiting; where there are
none, everything is one piece.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator

import numpy as np

from varco_runtime.backend import BatchingBackend, PromptInputs, pixel_path, reporting
from varco_runtime.dtypes import Array
from varco_runtime.engine.costs import WorkCosts
from varco_runtime.engine.job import EncodedPicture, Job, Model
from varco_runtime.picture.loading import Picture
from varco_runtime.picture.packing import packing_plan
from varco_runtime.picture.tiles import tile

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
        """Prepare a job that has a slot, a piece at a time; yield in between what the least next piece will take."""
        job.encoded = None if job.picture is None else (yield from self.encode(job.picture, job))
        yield from self._prefill(job)

    def encode(self, picture: Picture, job: Job | None = None) -> Generator[float, None, EncodedPicture]:
        """Encode a picture that no earlier question was about, in pieces, and keep its tokens for the next one."""
        model, clock = self._model, self._clock
        tokens = model.memory.image_tokens(picture.digest)
        if tokens is not None:
            return EncodedPicture(picture.digest, tokens)
        model.memory.make_room()
        started = clock()
        prepare, encode = pixel_path(model.backend, model.image)
        pixels = prepare(tile(picture, model.image))
        preprocess_s = clock() - started
        yield self._costs.tile_s
        vision_s, parts, done = 0.0, [], 0
        while done < len(pixels):
            num_tiles = len(pixels) - done
            if isinstance(model.backend, BatchingBackend):
                num_tiles = self._costs.tiles_within(self._left(), num_tiles)
            started = clock()
            with reporting(model.backend, _shifted(job, done, len(pixels))):
                parts.append(encode(pixels[done : done + num_tiles]))
            seconds = clock() - started
            self._costs.count_tiles(num_tiles, seconds)
            vision_s, done = vision_s + seconds, done + num_tiles
            yield self._costs.tile_s if done < len(pixels) else self._costs.chunk_s
        started = clock()
        features = parts[0] if len(parts) == 1 else np.concatenate(parts)
        tokens = model.backend.pack(features, packing_plan(picture.size_hw, model.image))
        model.memory.keep_image_tokens(picture.digest, tokens)
        return EncodedPicture(picture.digest, tokens, preprocess_s, vision_s + clock() - started)

    def _prefill(self, job: Job) -> Generator[float]:
        """Put a job's prompt into its slot. `logits` are those of the last positions, as soon as they are known."""
        model, ids, total = self._model, job.ids, len(job.ids)
        encoded = job.encoded
        started = self._clock()
        self._select(job)
        job.num_cached = done = model.memory.prepare(ids, None if encoded is None else encoded.digest, job.num_logits)
        job.prefill_s = self._clock() - started
        whole = PromptInputs(np.array(ids, dtype=np.int64), model.image_token_id, encoded and encoded.tokens)
        rows: list[Array] = []
        while done < total:
            started = self._clock()
            num_tokens = total - done
            if isinstance(model.backend, BatchingBackend):
                num_tokens = self._costs.tokens_within(self._left(), num_tokens)
            end = done + num_tokens
            wanted = max(0, end - max(done, total - job.num_logits))
            self._select(job)
            inputs = PromptInputs(whole.ids[:end], whole.image_token_id, whole.image_tokens)
            with reporting(model.backend, job.progress):
                logits = model.backend.prefill(inputs, done, max(1, wanted))
            seconds = self._clock() - started
            self._costs.count_tokens(num_tokens, seconds)
            job.prefill_s += seconds
            is_finite = bool(np.isfinite(logits[..., 0]).all())
            if wanted or not is_finite:
                rows.append(logits)
            if not is_finite:  # nor are the caches; the sampler refuses the logits, and the next question finds nothing
                model.memory.forget_sequence()
                break
            model.memory.sequence.ids = list(ids[:end])
            done = end
            if done < total:
                yield self._costs.chunk_s
        job.logits = rows[0] if len(rows) == 1 else np.concatenate(rows)

    def _select(self, job: Job) -> None:
        assert job.slot is not None, "Bug: a job is prepared without a slot"
        self._model.memory.select(job.slot)


def _shifted(job: Job | None, done: int, total: int) -> Callable[[str, int, int], None] | None:
    """Return a job's progress for a backend that counts the tiles of one piece."""
    progress = None if job is None else job.progress
    if progress is None:
        return None
    return lambda what, now, _: progress(what, done + now, total)
