"""The decode step for CUDA: one token, or one and a draft, through the decoder, replayed as a CUDA graph.

The provider captures the first run of a graph id and replays it from then on, so addresses and shapes stay the same and
only contents change: the token, and the position, which attention reads as `seqlens_k` on the device. So there is a
graph for each length of step and each band of the caches (`cache.py`), whose layouts differ.
`total_sequence_length` is read on the host, once, at the capture; it stands for the longest the sequence can be, and so
it is always the band's (onnxruntime-genai takes the caches' length). The capturing call runs the step several times
over, and again on every thread that calls it first, so a step must be repeatable: nothing it writes is among its
inputs. The token that the device chose is therefore handed back to it by the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from varco_runtime.backend import MAX_STEP_TOKENS
from varco_runtime.backends.cuda.cache import KeyValueCaches
from varco_runtime.backends.cuda.session import Binding, Buffer, Device, Network
from varco_runtime.bundle.manifest import Manifest
from varco_runtime.dtypes import Array

TokenRows = Callable[[Array], Array]
"""Token ids to their rows, as the device takes them."""


class DecodeStep:
    """The step of `num_tokens` tokens: its buffers, and a binding for each band of the caches, made when it is first
    taken. `token_rows` are for a decoder that takes rows and not ids.

    Runs of other shapes use no graph.
    """

    def __init__(
        self,
        device: Device,
        decoder: Network,
        manifest: Manifest,
        caches: KeyValueCaches,
        image_tokens: Buffer,
        token_rows: TokenRows | None = None,
        num_tokens: int = 1,
    ) -> None:
        self._device, self._decoder, self._caches, self._image_tokens = device, decoder, caches, image_tokens
        self._num_tokens = num_tokens
        self._token_rows = token_rows
        if token_rows is None:
            self._tokens_name, self._tokens = "token_ids", device.buffer("int64", (1, num_tokens))
        else:
            shape = (1, num_tokens, manifest.model.hidden_size)
            self._tokens_name, self._tokens = "inputs_embeds", device.buffer(manifest.decoder.compute, shape)
        self._seqlens_k = device.buffer("int32", (1,))
        self.logits_buffer = device.buffer("fp32", (1, num_tokens, manifest.model.vocab_size))
        self._next_tokens = device.buffer("int64", (1, num_tokens))
        positions = device.buffer("int64", (num_tokens,))
        positions.set(np.arange(num_tokens))
        self._unchanging = [
            device.buffer("int64", (1, num_tokens)),  # the picture's rows that are looked up and not used
            device.buffer("bool", (1, num_tokens, 1)),  # no picture here
            positions,  # the logits of all positions
        ]
        self._bindings: dict[int, tuple[Binding, Any | None]] = {}

    def _bound(self) -> tuple[Binding, Any | None]:
        """Return the binding of the caches' band, and the options with its graph's id."""
        band = self._caches.band
        if band not in self._bindings:
            graph_id = band * MAX_STEP_TOKENS + self._num_tokens
            self._bindings[band] = self._binding(), self._device.graph_options(graph_id)
        return self._bindings[band]

    def _binding(self) -> Binding:
        binding, image_tokens = self._decoder.binding(), self._image_tokens
        binding.input(self._tokens_name, self._tokens, self._tokens.shape)
        for name, buffer in zip(("image_rows", "is_image", "logit_positions"), self._unchanging, strict=True):
            binding.input(name, buffer, buffer.shape)
        binding.input("image_tokens", image_tokens, (1, image_tokens.shape[1]))
        binding.input("seqlens_k", self._seqlens_k, (1,))
        total = self._device.ort.OrtValue.ortvalue_from_numpy(np.array(self._caches.capacity, np.int32))
        binding.value("total_sequence_length", total)
        binding.output("logits", self.logits_buffer, self.logits_buffer.shape)
        binding.output("next_token", self._next_tokens, self._next_tokens.shape)
        self._caches.bind(binding)
        return binding

    def run(self, token_ids: Sequence[int], position: int) -> None:
        """Put the tokens at `position` and after. `logits` and `chosen` tell what comes of it, until the next run."""
        ids = np.array(token_ids)
        self._tokens.set(ids if self._token_rows is None else self._token_rows(ids))
        self._seqlens_k.set(np.array(position + self._num_tokens - 1))
        self._decoder.run(*self._bound())

    def chosen(self) -> list[int]:
        """Return the token with the largest logit at each position: all that a greedy step moves to the host."""
        return [int(token) for token in self._next_tokens.read()[0]]

    def logits(self) -> Array:
        """Return the logits `[num_tokens, vocab]` fp32 of the last run."""
        rows: Array = self.logits_buffer.read()[0]
        return rows
