"""What the backends that work in the machine's own memory share: media, prompts in chunks and their rows of tokens."""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod

import numpy as np

from varco_runtime.backend import Features, Progress, PromptInputs
from varco_runtime.backends.embedding import embedding_table
from varco_runtime.backends.prompt_runs import check_length, prompt_runs
from varco_runtime.bundle.opening import Bundle
from varco_runtime.dtypes import STORAGE, Array
from varco_runtime.picture.packing import PackingPlan, pack
from varco_runtime.system.processor import usable_cores


class HostBackend(ABC):
    """One loaded bundle, whose embedding rows and image tokens are arrays. See `Backend` for the methods.

    Args:
        bundle: A checked bundle for the CPU.
        max_context: The most positions.
        threads: Processor threads, by default all.
    """

    def __init__(self, bundle: Bundle, max_context: int, threads: int | None) -> None:
        manifest = bundle.manifest
        self._bundle = bundle
        self._max_context = max_context
        self._threads = threads or usable_cores()
        self._model = manifest.model
        assert manifest.embedding is not None, "Bug: a bundle for the CPU without token rows"
        self._embedding = embedding_table(bundle, manifest.embedding)
        self._newline = self._embedding.newline
        self._vision_type = np.dtype(STORAGE[manifest.vision.compute])
        self._decoder_type = np.dtype(STORAGE[manifest.decoder.compute])
        self.progress: Progress | None = None

    @abstractmethod
    def _run_vision_tower(self, tile: Array) -> Array:
        """A tile `[1, 3, S, S]` to patch features `[1, P, C]`."""

    @abstractmethod
    def _project(self, patches: Array) -> Array:
        """Patch features `[1, P, C]` to image features `[1, P, D]`."""

    @abstractmethod
    def _run_decoder(self, embeds: Array, position: int, num_logits: int) -> Array:
        """Put rows `[1, n, D]` into the cache from `position` on; return the last logits `[num_logits, vocab]` fp32."""

    @property
    def max_context(self) -> int:
        return self._max_context

    @property
    def prefix_bytes_per_position(self) -> int:
        return self._bundle.manifest.kv_bytes_per_token

    @property
    def _threads_text(self) -> str:
        return f"{self._threads} thread{'s' if self._threads > 1 else ''}"

    # -- pictures -----------------------------------------------------------------------------------------------------

    def encode(self, pixel_values: Array) -> Array:
        """One tile after the other: a tile alone fills the cores, and memory stays that of one."""
        num_tiles = len(pixel_values)
        features: list[Array] = []
        for tile in np.split(pixel_values, num_tiles):
            self._report("tiles", len(features), num_tiles)
            features.append(self._project(self._run_vision_tower(tile)))
        return np.concatenate(features).astype(np.float32, copy=False)

    def features(self, pixel_values: Array, plan: PackingPlan) -> Features:
        patches = [self._run_vision_tower(tile) for tile in np.split(pixel_values, len(pixel_values))]
        features = np.concatenate([self._project(one) for one in patches]).astype(np.float32, copy=False)
        tokens = self.pack(features, plan)
        return Features(np.concatenate(patches).astype(np.float32), features, tokens, tokens)

    def pack(self, features: Array, plan: PackingPlan) -> Array:
        return pack(features, self._newline, plan)

    # -- prompts ------------------------------------------------------------------------------------------------------

    def _prefill(self, inputs: PromptInputs, start: int, num_logits: int, chunk_tokens: int) -> Array:
        """See `Backend.prefill`; at most `chunk_tokens` positions to a run."""
        total = len(inputs.ids)
        check_length(total, self._max_context)
        pieces = []
        for run in prompt_runs(total, start, num_logits, chunk_tokens, max_logits=total):
            self._report("tokens", run.start, total)
            logits = self._run_decoder(self._embed(inputs, run.start, run.end), run.start, run.num_logits)
            if run.num_wanted:
                pieces.append(logits)
        self._report("tokens", total, total)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _report(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)

    def _embed(self, inputs: PromptInputs, start: int, end: int) -> Array:
        """Rows `[1, end - start, D]` for the decoder."""
        media_rows = inputs.rows(start, end)
        is_image = media_rows >= 0
        rows = self._embedding.rows(np.where(is_image, 0, inputs.ids[start:end]))
        if inputs.image_tokens is not None:
            rows[is_image] = inputs.image_tokens[media_rows[is_image]]
        return rows[None].astype(self._decoder_type, copy=False)


def take_memory(array: Array) -> None:
    """Take an array's memory from the system, which gives it as it is first written: each page is written, as it is."""
    pages = array.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE]
    np.bitwise_or(pages, 0, out=pages)
