"""The decode step for CUDA: one token through the decoder, replayed as a CUDA graph.

The provider captures the first run of a graph id and replays it from then on, so addresses and shapes stay the same and
only contents change: the token, and the position, which attention reads as `seqlens_k` on the device.
`total_sequence_length` is read on the host, once, at the capture; it stands for the longest the sequence can be, and so
it is always the length of the caches (onnxruntime-genai does the same). The capturing call runs the step several times
over, and again on every thread that calls it first, so a step must be repeatable: nothing it writes is among its
inputs. The token that the device chose is therefore handed back to it by the host. While a capture is under way no
other thread of the process may ask CUDA for memory or a copy: the provider captures in CUDA's global mode.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from varco_runtime.contract import cache_names
from varco_runtime.cuda_session import GRAPH_KEY, STORAGE, Binding, Buffer, Device, Network
from varco_runtime.manifest import Manifest

STEP_GRAPH = "1"
"""The graph id of the step. Any number from 1 would do; runs of other shapes use none."""

Array = np.ndarray[Any, Any]


class DecodeStep:
    """The step's buffers and its one binding. `caches` are bound as past and as present."""

    def __init__(
        self, device: Device, decoder: Network, manifest: Manifest, caches: dict[str, Buffer], image_tokens: Buffer
    ) -> None:
        self._decoder = decoder
        self._token = device.buffer("int64", (1, 1))
        self._seqlens_k = device.buffer("int32", (1,))
        self._logits = device.buffer("fp32", (1, 1, manifest.model.vocab_size))
        self._next_token = device.buffer("int64", (1, 1))
        self._unchanging = [
            device.buffer("int64", (1, 1)),  # the picture's row that is looked up and not used
            device.buffer("bool", (1, 1, 1)),  # no picture here
            device.buffer("int64", (1,)),  # the only position's logits
        ]
        max_context = caches["0.key"].shape[2]
        self._total = np.array(max_context, np.int32)
        self._binding = binding = decoder.binding()
        for name, buffer in zip(("image_rows", "is_image", "logit_positions"), self._unchanging, strict=True):
            binding.input(name, buffer, buffer.shape)
        binding.input("token_ids", self._token, (1, 1))
        binding.input("image_tokens", image_tokens, (1, image_tokens.shape[1]))
        binding.input("seqlens_k", self._seqlens_k, (1,))
        binding.value("total_sequence_length", device.ort.OrtValue.ortvalue_from_numpy(self._total))
        binding.output("logits", self._logits, self._logits.shape)
        binding.output("next_token", self._next_token, (1, 1))
        bind_caches(binding, caches)
        self._options: Any | None = None
        if device.place == "cuda":
            self._options = device.ort.RunOptions()
            self._options.add_run_config_entry(GRAPH_KEY, STEP_GRAPH)

    def run(self, token_id: int, position: int) -> None:
        """Put a token at a position. `logits` and `chosen` tell what comes of it, until the next run."""
        self._token.set(np.array(token_id))
        self._seqlens_k.set(np.array(position))
        self._decoder.run(self._binding, self._options)

    def chosen(self) -> int:
        """The token with the largest logit: all that a greedy step moves to the host."""
        return int(self._next_token.read()[0, 0])

    def logits(self) -> Array:
        """The logits `[vocab]` fp32 of the last run."""
        row: Array = self._logits.read()[0, 0]
        return row


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
    first = cache_names(model.num_layers)[0]
    caches = {first: device.buffer(dtype, shape)}
    zeros = caches[first].read() if device.place == "cuda" else None
    for name in cache_names(model.num_layers)[1:]:
        caches[name] = device.buffer(dtype, shape, zeros)
    return caches
