"""The decode step on TensorRT: one token of one sequence or of several, replayed as a captured CUDA graph.

A graph fixes addresses and shapes, yet every step has other tokens, other positions and a longer context:

- Tokens, positions and mask lie in buffers of their own. The graph ends by copying the tokens that the device chose to
  where the next replay looks them up, so greedy decoding moves one integer a row and step, that token, and only to the
  host. The position of one row is copied from a table on the device, those of several come from the host. One byte of
  each row's mask is set.
- The mask's width, the length of the longest context, is rounded up to a multiple of `BUCKET_POSITIONS`. The mask is
  false beyond a row's position, so what the caches hold there weighs nothing; but nothing times NaN is NaN, so they
  must hold finite numbers there. They hold zeros: the backend clears caches when it allocates them, and what it
  rewinds.
- TensorRT wants one plain run between a change of shape and a capture, and a graph is worthless once its context has
  changed. So each number of rows has a context of its own (prefill has another) and one graph, that of the current
  width and, for one sequence, of its slot: the first step of a width runs plainly, the second is captured, all others
  replay it. A graph and a context for each width would save one plain step and one capture in 512, and cost their
  memory.
- What cannot be captured runs plainly at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from varco_runtime.backends.tensorrt.cuda_api import Buffer, Cuda
from varco_runtime.backends.tensorrt.engine import Engine, ExecutionContext
from varco_runtime.backends.tensorrt.step_mask import StepMask
from varco_runtime.bundle.manifest import Manifest, cache_names
from varco_runtime.dtypes import ITEM_BYTES

BUCKET_POSITIONS = 512
"""Reading 256 positions too many on average is 50 MB of the 14B's caches, beside 8 GB of int4 weights."""
PREFILL, DECODE, ROWS = 0, 1, 2
"""The decoder's profiles: for several positions, for one, and for one of several sequences."""
_INT_BYTES = ITEM_BYTES["int64"]


class DecodeStep:
    """The step's contexts, its graph, and what they read.

    Args:
        cuda: The device.
        manifest: The bundle's.
        engines: The loaded engines.
        buffers: All buffers by name.
        scratch: What runs work in.
        mask: The rows' mask.
        num_rows: How many sequences take the step: the one of a slot, or those of the first slots.
    """

    def __init__(
        self,
        cuda: Cuda,
        manifest: Manifest,
        engines: dict[str, Engine],
        buffers: dict[str, Buffer],
        scratch: Buffer,
        mask: StepMask,
        num_rows: int = 1,
    ) -> None:
        self._cuda, self._manifest, self._mask = cuda, manifest, mask
        self._num_rows = num_rows
        names = ("step_token", "step_embeds", "step_position")
        if num_rows > 1:
            names = ("rows_tokens", "rows_embeds", "rows_positions")
        self._tokens, self._embeds, self._positions = (buffers[name] for name in names)
        self._buffers = buffers
        self._max_context = buffers["step_mask"].num_bytes
        # The embedding looks several up as one sequence does, and those of rows are as many as a short prompt's.
        profile = PREFILL if num_rows > 1 else min(DECODE, engines["embedding"].num_profiles - 1)
        self._embedding = ExecutionContext(engines["embedding"], scratch, profile, is_captured=True)
        self._decoder = ExecutionContext(
            engines["decoder"], scratch, DECODE if num_rows == 1 else ROWS, is_captured=True
        )
        self._bind()
        for buffer in (self._tokens, buffers["step_logit"]):
            cuda.fill(buffer, 0)
        self._host_tokens = cuda.pinned((num_rows,), np.int64)
        self._host_positions = cuda.pinned((num_rows,), np.int64)
        self._device_tokens: list[int] | None = None  # what lies in the tokens' buffer, as far as the host knows
        self._slot = 0
        self._width: int | None = None  # the mask's width in the context
        self._graph: Any | None = None
        self.can_capture = True
        cuda.at_close(self._forget_graph)

    def _bind(self) -> None:
        buffers, rows, width = self._buffers, self._num_rows, self._manifest.model.hidden_size
        self._embedding.bind("token_ids", self._tokens)
        self._embedding.bind("inputs_embeds", self._embeds)
        self._embedding.shape("token_ids", 1, rows)
        for name, buffer in (
            ("inputs_embeds", self._embeds),
            ("position_ids", self._positions),
            ("write_indices", self._positions),  # the same numbers
            ("attention_mask", buffers["rows_mask" if rows > 1 else "step_mask"]),
            ("logit_positions", buffers["step_logit"]),
            ("logits", buffers["logits"]),
            ("next_token", buffers["next_token"]),
        ):
            self._decoder.bind(name, buffer)
        bind_caches(self._decoder, self._manifest, buffers, 0, rows)
        self._decoder.shape("inputs_embeds", rows, 1, width)
        self._decoder.shape("position_ids", rows, 1)
        self._decoder.shape("write_indices", rows)
        self._decoder.shape("logit_positions", 1)

    def run(self, token_ids: Sequence[int], positions: Sequence[int], slot: int = 0) -> None:
        """Put a token into each row. `logits` and `next_token` hold what comes of it.

        Args:
            token_ids: A token for each row.
            positions: Where each of them goes, behind what the row holds.
            slot: The first row's, another than the first only where there is one row.
        """
        cuda, tokens = self._cuda, list(token_ids)
        assert 0 <= min(positions) <= max(positions) < self._max_context, f"Bug: {positions} of {self._max_context}"
        if slot != self._slot:
            self._forget_graph()
            bind_caches(self._decoder, self._manifest, self._buffers, slot, self._num_rows)
            self._slot = slot
        if tokens != self._device_tokens:
            self._host_tokens[:] = tokens
            cuda.upload_pinned(self._tokens, self._host_tokens)
        self._device_tokens = None
        if self._num_rows == 1:
            first = positions[0] * _INT_BYTES
            cuda.copy(self._positions, self._buffers["positions"].part(first, _INT_BYTES))
        else:
            self._host_positions[:] = positions
            cuda.upload_pinned(self._positions, self._host_positions)
        buckets = -(-(max(positions) + 1) // BUCKET_POSITIONS)
        width = min(buckets * BUCKET_POSITIONS, self._max_context)
        self._mask.lay_out(width)
        for row, position in enumerate(positions):
            self._mask.show(row, position + 1)
        self._run(width)

    def chosen(self) -> list[int]:
        """Wait for the tokens that the device chose in the last run, which need not be handed to it again."""
        self._cuda.download(self._host_tokens, self._buffers["next_token"].part(0, self._num_rows * _INT_BYTES))
        self._cuda.synchronize()
        self._device_tokens = [int(token) for token in self._host_tokens]
        return list(self._device_tokens)

    def _run(self, width: int) -> None:
        """Plainly in a new width, then captured, then replayed."""
        if width != self._width:
            self._forget_graph()
            self._decoder.shape("attention_mask", self._num_rows, 1, 1, width)
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
        self._cuda.copy(self._tokens, self._buffers["next_token"].part(0, self._num_rows * _INT_BYTES))

    def _forget_graph(self) -> None:
        graph, self._graph, self._width = self._graph, None, None
        if graph is not None:
            self._cuda.forget(graph)


def bind_caches(
    decoder: ExecutionContext, manifest: Manifest, buffers: dict[str, Buffer], slot: int = 0, rows: int = 1
) -> None:
    """Past and present of some slots at one address: the decoder updates its caches in place."""
    model = manifest.model
    for name in cache_names(model.num_layers):
        cache = buffers[f"cache.{name}"]
        row_bytes = model.num_key_value_heads * model.head_dim * ITEM_BYTES[manifest.decoder.compute]
        max_context = buffers["step_mask"].num_bytes
        part = cache.part(slot * row_bytes * max_context, rows * row_bytes * max_context)
        decoder.bind(f"past.{name}", part)
        decoder.bind(f"present.{name}", part)
        decoder.shape_of_rows(f"past.{name}", rows)
