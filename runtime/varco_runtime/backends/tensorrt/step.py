"""The decode step on TensorRT: one token through the network, replayed as a captured CUDA graph.

A graph fixes addresses and shapes, yet every step has another token, another position and a longer context:

- Token, position and mask lie in buffers of their own. The graph ends by copying the token that the device chose to
  where the next replay looks it up, so greedy decoding moves one integer per step, that token, and only to the host.
  The position is copied from a table on the device, and one byte of the mask is set: the mask only ever grows.
- The mask's width, the length of the context, is rounded up to a multiple of `BUCKET_POSITIONS`. The mask is false
  beyond the position, so what the caches hold there weighs nothing; but nothing times NaN is NaN, so they must hold
  finite numbers there. They hold zeros: the backend clears caches when it allocates them, and what it rewinds.
- TensorRT wants one plain run between a change of shape and a capture, and a graph is worthless once its context has
  changed. So the step has a context of its own (prefill has another) and one graph, that of the current width: the
  first step of a width runs plainly, the second is captured, all others replay it. A graph and a context for each width
  would save one plain step and one capture in 512, and cost their memory.
- What cannot be captured runs plainly at every step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from varco_runtime.backends.tensorrt.cuda_api import Buffer, Cuda
from varco_runtime.backends.tensorrt.engine import Engine, ExecutionContext
from varco_runtime.bundle.manifest import Manifest, cache_names
from varco_runtime.dtypes import ITEM_BYTES

BUCKET_POSITIONS = 512
"""Reading 256 positions too many on average is 50 MB of the 14B's caches, beside 8 GB of int4 weights."""
DECODE = 1
"""The decoder's profile for one position."""
_INT_BYTES = ITEM_BYTES["int64"]


class DecodeStep:
    """The step's contexts, its graph, and what they read."""

    def __init__(
        self, cuda: Cuda, manifest: Manifest, engines: dict[str, Engine], buffers: dict[str, Buffer], scratch: Buffer
    ) -> None:
        self._cuda = cuda
        self._buffers = buffers
        self._max_context = buffers["step_mask"].num_bytes
        profile = min(DECODE, engines["embedding"].num_profiles - 1)
        self._embedding = ExecutionContext(engines["embedding"], scratch, profile, is_captured=True)
        self._decoder = ExecutionContext(engines["decoder"], scratch, DECODE, is_captured=True)
        self._bind(manifest)
        for name in ("step_mask", "step_logit", "step_token"):
            cuda.fill(buffers[name], 0)
        self._host_token = cuda.pinned((1,), np.int64)
        self._device_token: int | None = None  # what lies in step_token, as far as the host knows
        self._width: int | None = None  # the mask's width in the context
        self._graph: Any | None = None
        self.can_capture = True
        cuda.at_close(self._forget_graph)

    def _bind(self, manifest: Manifest) -> None:
        buffers = self._buffers
        self._embedding.bind("token_ids", buffers["step_token"])
        self._embedding.bind("inputs_embeds", buffers["step_embeds"])
        self._embedding.shape("token_ids", 1, 1)
        for name, buffer in (
            ("inputs_embeds", "step_embeds"),
            ("position_ids", "step_position"),
            ("write_indices", "step_position"),  # the same number
            ("attention_mask", "step_mask"),
            ("logit_positions", "step_logit"),
            ("logits", "logits"),
            ("next_token", "next_token"),
        ):
            self._decoder.bind(name, buffers[buffer])
        bind_caches(self._decoder, manifest, buffers)
        self._decoder.shape("inputs_embeds", 1, 1, manifest.model.hidden_size)
        self._decoder.shape("position_ids", 1, 1)
        self._decoder.shape("logit_positions", 1)

    def unmask(self, first: int, count: int) -> None:
        """Let steps attend to positions that are in the caches."""
        self._cuda.fill(self._buffers["step_mask"].part(first, count), 1)

    def mask(self, first: int, count: int) -> None:
        self._cuda.fill(self._buffers["step_mask"].part(first, count), 0)

    def run(self, token_id: int, position: int) -> None:
        """Put a token at a position that follows those shown. `logits` and `next_token` hold what comes of it."""
        cuda, buffers = self._cuda, self._buffers
        assert 0 <= position < self._max_context, f"Bug: position {position} of {self._max_context}"
        if token_id != self._device_token:
            self._host_token[0] = token_id
            cuda.upload_pinned(buffers["step_token"], self._host_token)
        self._device_token = None
        cuda.copy(buffers["step_position"], buffers["positions"].part(position * _INT_BYTES, _INT_BYTES))
        self.unmask(position, 1)
        buckets = -(-(position + 1) // BUCKET_POSITIONS)
        self._run(min(buckets * BUCKET_POSITIONS, self._max_context))

    def chosen(self) -> int:
        """Wait for the token that the device chose in the last run, which need not be handed to it again."""
        self._cuda.download(self._host_token, self._buffers["next_token"].part(0, _INT_BYTES))
        self._cuda.synchronize()
        self._device_token = int(self._host_token[0])
        return self._device_token

    def _run(self, width: int) -> None:
        """Plainly in a new width, then captured, then replayed."""
        if width != self._width:
            self._forget_graph()
            self._decoder.shape("attention_mask", 1, 1, 1, width)
            self._enqueue()
            self._width = width
            return
        if self._graph is None and self.can_capture:
            self.can_capture = self._embedding.is_capturable and self._decoder.is_capturable
            self._graph = self._cuda.capture(self._enqueue) if self.can_capture else None
            self.can_capture = self._graph is not None
        if self._graph is None:
            self._enqueue()
        else:
            self._cuda.launch(self._graph)

    def _enqueue(self) -> None:
        """What a graph holds."""
        self._embedding.run()
        self._decoder.run()
        self._cuda.copy(self._buffers["step_token"], self._buffers["next_token"].part(0, _INT_BYTES))

    def _forget_graph(self) -> None:
        graph, self._graph, self._width = self._graph, None, None
        if graph is not None:
            self._cuda.forget(graph)


def bind_caches(decoder: ExecutionContext, manifest: Manifest, buffers: dict[str, Buffer]) -> None:
    """Past and present at one address: the decoder updates its caches in place."""
    for name in cache_names(manifest.model.num_layers):
        decoder.bind(f"past.{name}", buffers[f"cache.{name}"])
        decoder.bind(f"present.{name}", buffers[f"cache.{name}"])
