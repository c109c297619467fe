"""The draw of tokens on CUDA: a small graph of its own behind the decode step, replayed like it, for all rows at once.

The logits stay where the step left them. Six numbers a row go to the device, with a repetition penalty one flag for
each token of the vocabulary, and one integer a row comes back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from varco_runtime.backend import Draw
from varco_runtime.backends.cuda.session import Buffer, Device, Network
from varco_runtime.bundle.graph_contract import NUM_SETTINGS


class SamplingStep:
    """The draw's buffers and its one binding, for as many rows as there are logits.

    Args:
        device: Where it runs.
        network: The draw.
        logits: The decode step's, `[rows, 1, vocab]`.
        takes_rows: Whether flags and settings have a dimension for the rows; those of earlier exports have none.
    """

    def __init__(self, device: Device, network: Network, logits: Buffer, takes_rows: bool = True) -> None:
        self._network = network
        self._num_rows, _, self._vocab_size = logits.shape
        assert takes_rows or self._num_rows == 1, f"Bug: {self._num_rows} rows in the draw of an earlier export"
        self._seen = device.buffer("bool", (self._num_rows, self._vocab_size))
        self._settings = device.buffer("fp64", (self._num_rows, NUM_SETTINGS))
        self._next_tokens = device.buffer("int64", (self._num_rows, 1))
        self._binding = binding = network.binding()
        binding.input("logits", logits, logits.shape)
        for name, buffer in (("seen", self._seen), ("settings", self._settings)):
            binding.input(name, buffer, buffer.shape if takes_rows else buffer.shape[1:])
        binding.output("next_token", self._next_tokens, self._next_tokens.shape)
        self._options = device.graph_options(self._num_rows)

    def run(self, draws: Sequence[Draw]) -> list[int]:
        """Return the token that each row's draw takes from the last step's logits."""
        self._settings.set(np.array([self._row(draw) for draw in draws]))
        if any(draw.penalty != 1 for draw in draws):  # else whatever flags are there change nothing
            seen = np.zeros((self._num_rows, self._vocab_size), np.bool_)
            for row, draw in zip(seen, draws, strict=True):
                row[draw.seen] = True
            self._seen.set(seen)
        self._network.run(self._binding, self._options)
        return [int(token) for token in self._next_tokens.read()[:, 0]]

    def _row(self, draw: Draw) -> tuple[float, ...]:
        first = self._vocab_size - draw.top_k
        return draw.penalty, draw.temperature, first, draw.cut, draw.min_p, draw.place
