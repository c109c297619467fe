"""The decode step for CUDA, replayed as a CUDA graph: one sequence's token and a draft, or a token of each of several.

The provider captures the first run of a graph id and replays it from then on, so addresses and shapes stay the same and
only contents change: the tokens, and the positions, which attention reads as `seqlens_k` on the device. So there is a
graph for each length of step, number of rows and band of the caches (`cache.py`), whose layouts differ, and for one
sequence in each slot (`graphs.py`). `total_sequence_length` is read on the host, once, at the capture; it stands for
the longest the sequences can be, and so it is always the band's (onnxruntime-genai takes the caches' length). The
capturing call runs the step several times over, and again on every thread that calls it first, so a step must be
repeatable: nothing it writes is among its inputs. The token that the device chose is therefore handed back to it by the
host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from varco_runtime.backends.cuda.cache import KeyValueCaches
from varco_runtime.backends.cuda.graphs import Graphs
from varco_runtime.backends.cuda.session import Binding, Buffer, Device, Network
from varco_runtime.bundle.manifest import Manifest
from varco_runtime.dtypes import Array

TokenRows = Callable[[Array], Array]
"""Token ids to their rows, as the device takes them."""


class DecodeStep:
    """The step of `num_tokens` tokens of each of `num_rows` sequences, of which one of the two is 1.

    It has its buffers, and a binding for each band of the caches and first slot, made when it is first taken.
    `token_rows` are for a decoder that takes rows and not ids. Runs of other shapes use no graph.
    """

    def __init__(
        self,
        device: Device,
        decoder: Network,
        manifest: Manifest,
        caches: KeyValueCaches,
        graphs: Graphs,
        image_tokens: Buffer,
        token_rows: TokenRows | None = None,
        num_tokens: int = 1,
        num_rows: int = 1,
    ) -> None:
        self._device, self._decoder, self._caches, self._graphs = device, decoder, caches, graphs
        self._image_tokens = image_tokens
        self._num_tokens, self._num_rows = num_tokens, num_rows
        self._token_rows = token_rows
        shape = (num_rows, num_tokens)
        if token_rows is None:
            self._tokens_name, self._tokens = "token_ids", device.buffer("int64", shape)
        else:
            compute, width = manifest.decoder.compute, manifest.model.hidden_size
            self._tokens_name, self._tokens = "inputs_embeds", device.buffer(compute, (*shape, width))
        self._seqlens_k = device.buffer("int32", (num_rows,))
        self.logits_buffer = device.buffer("fp32", (*shape, manifest.model.vocab_size))
        self._next_tokens = device.buffer("int64", shape)
        positions = device.buffer("int64", (num_tokens,))
        positions.set(np.arange(num_tokens))
        self._unchanging = [
            device.buffer("int64", shape),  # the picture's rows that are looked up and not used
            device.buffer("bool", (*shape, 1)),  # no picture here
            positions,  # the logits of all positions
        ]
        self._bindings: dict[tuple[int, int], tuple[Binding, Any | None]] = {}

    def _bound(self, slot: int) -> tuple[Binding, Any | None]:
        """Return the binding of the caches' band from a slot on, and the options with its graph's id."""
        place = self._caches.band, slot
        if place not in self._bindings:
            options = self._graphs.options(*place, self._num_rows, self._num_tokens)
            self._bindings[place] = self._binding(slot), options
        return self._bindings[place]

    def _binding(self, slot: int) -> Binding:
        binding, image_tokens = self._decoder.binding(), self._image_tokens
        binding.input(self._tokens_name, self._tokens, self._tokens.shape)
        for name, buffer in zip(("image_rows", "is_image", "logit_positions"), self._unchanging, strict=True):
            binding.input(name, buffer, buffer.shape)
        binding.input("image_tokens", image_tokens, (1, image_tokens.shape[1]))
        binding.input("seqlens_k", self._seqlens_k, self._seqlens_k.shape)
        total = self._device.ort.OrtValue.ortvalue_from_numpy(np.array(self._caches.capacity, np.int32))
        binding.value("total_sequence_length", total)
        binding.output("logits", self.logits_buffer, self.logits_buffer.shape)
        binding.output("next_token", self._next_tokens, self._next_tokens.shape)
        self._caches.bind(binding, slot, self._num_rows)
        return binding

    def run(self, token_ids: Sequence[int], positions: Sequence[int], slot: int = 0) -> None:
        """Put tokens into rows from `slot` on; `logits` and `chosen` tell what comes of it, until the next run.

        Args:
            token_ids: A row's tokens after the other's.
            positions: Where the first of each row goes.
            slot: The first row's.
        """
        ids = np.array(token_ids)
        self._tokens.set(ids if self._token_rows is None else self._token_rows(ids))
        self._seqlens_k.set(np.array(positions) + self._num_tokens - 1)
        self._decoder.run(*self._bound(slot))

    def chosen(self) -> list[int]:
        """Return the token with the largest logit behind each token: all that a greedy step moves to the host."""
        return [int(token) for token in self._next_tokens.read().reshape(-1)]

    def logits(self) -> Array:
        """Return the logits `[rows * tokens, vocab]` fp32 of the last run."""
        rows: Array = self.logits_buffer.read()
        return rows.reshape(-1, rows.shape[-1])
