"""The decode step for CUDA: one token, or one and a draft, through the decoder, replayed as a CUDA graph.

The provider captures the first run of a graph id and replays it from then on, so addresses and shapes stay the same and
only contents change: the token, and the position, which attention reads as `seqlens_k` on the device.
`total_sequence_length` is read on the host, once, at the capture; it stands for the longest the sequence can be, and so
it is always the length of the caches (onnxruntime-genai does the same). The capturing call runs the step several times
over, and again on every thread that calls it first, so a step must be repeatable: nothing it writes is among its
inputs. The token that the device chose is therefore handed back to it by the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from varco_runtime.backends.cuda.session import Binding, Buffer, Device, Network
from varco_runtime.bundle.manifest import Manifest, cache_names
from varco_runtime.dtypes import STORAGE, Array

TokenRows = Callable[[Array], Array]
"""Token ids to their rows, as the device takes them."""


class DecodeStep:
    """The step of `num_tokens` tokens: its buffers and its one binding. `caches` are bound as past and as present.
    `token_rows` are for a decoder that takes rows and not ids.

    Its graph's id is the number of tokens; runs of other shapes use no graph.
    """

    def __init__(
        self,
        device: Device,
        decoder: Network,
        manifest: Manifest,
        caches: dict[str, Buffer],
        image_tokens: Buffer,
        token_rows: TokenRows | None = None,
        num_tokens: int = 1,
    ) -> None:
        self._decoder = decoder
        self._num_tokens = num_tokens
        self._token_rows = token_rows
        if token_rows is None:
            name, self._tokens = "token_ids", device.buffer("int64", (1, num_tokens))
        else:
            shape = (1, num_tokens, manifest.model.hidden_size)
            name, self._tokens = "inputs_embeds", device.buffer(manifest.decoder.compute, shape)
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
        max_context = caches["0.key"].shape[2]
        self._total = np.array(max_context, np.int32)
        self._binding = binding = decoder.binding()
        binding.input(name, self._tokens, self._tokens.shape)
        for name, buffer in zip(("image_rows", "is_image", "logit_positions"), self._unchanging, strict=True):
            binding.input(name, buffer, buffer.shape)
        binding.input("image_tokens", image_tokens, (1, image_tokens.shape[1]))
        binding.input("seqlens_k", self._seqlens_k, (1,))
        binding.value("total_sequence_length", device.ort.OrtValue.ortvalue_from_numpy(self._total))
        binding.output("logits", self.logits_buffer, self.logits_buffer.shape)
        binding.output("next_token", self._next_tokens, self._next_tokens.shape)
        bind_caches(binding, caches)
        self._options = device.graph_options(num_tokens)

    def run(self, token_ids: Sequence[int], position: int) -> None:
        """Put the tokens at `position` and after. `logits` and `chosen` tell what comes of it, until the next run."""
        ids = np.array(token_ids)
        self._tokens.set(ids if self._token_rows is None else self._token_rows(ids))
        self._seqlens_k.set(np.array(position + self._num_tokens - 1))
        self._decoder.run(self._binding, self._options)

    def chosen(self) -> list[int]:
        """The token with the largest logit at each position: all that a greedy step moves to the host."""
        return [int(token) for token in self._next_tokens.read()[0]]

    def logits(self) -> Array:
        """The logits `[num_tokens, vocab]` fp32 of the last run."""
        rows: Array = self.logits_buffer.read()[0]
        return rows


def bind_caches(binding: Binding, caches: dict[str, Buffer]) -> None:
    """Past and present at one address: attention appends in place and copies nothing."""
    for name, buffer in caches.items():
        binding.input(f"past.{name}", buffer, buffer.shape)
        binding.output(f"present.{name}", buffer, buffer.shape)


def clear_caches(caches: dict[str, Buffer]) -> None:
    """Zeros again: NaN beyond the sequence would reach the next answer, for nothing times NaN is NaN."""
    first = next(iter(caches.values()))
    zeros = np.zeros(first.shape, STORAGE[first.dtype])
    for buffer in caches.values():
        buffer.set(zeros)


def make_caches(device: Device, manifest: Manifest, max_context: int) -> dict[str, Buffer]:
    """Zeroed keys and values of every layer: what stands beyond the sequence must be finite, for it weighs nothing."""
    model, dtype = manifest.model, manifest.decoder.compute
    shape = (1, model.num_key_value_heads, max_context, model.head_dim)
    zeros = np.zeros(shape, STORAGE[dtype]) if device.place == "cuda" else None
    return {name: device.buffer(dtype, shape, zeros) for name in cache_names(model.num_layers)}
