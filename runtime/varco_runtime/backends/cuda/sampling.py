"""The draw of a token on CUDA: a small graph of its own behind the decode step, replayed like it.

The logits stay where the step left them. Six numbers go to the device, with a repetition penalty one flag for each
token of the vocabulary, and one integer comes back.
"""

from __future__ import annotations

import numpy as np

from varco_runtime.backend import Draw
from varco_runtime.backends.cuda.session import Buffer, Device, Network
from varco_runtime.bundle.graph_contract import NUM_SETTINGS

GRAPH_ID = 1


class SamplingStep:
    """The draw's buffers and its one binding. `logits` `[1, 1, vocab]` are the decode step's."""

    def __init__(self, device: Device, network: Network, logits: Buffer) -> None:
        self._network = network
        self._vocab_size = logits.shape[-1]
        self._seen = device.buffer("bool", (self._vocab_size,))
        self._settings = device.buffer("fp64", (NUM_SETTINGS,))
        self._next_token = device.buffer("int64", (1, 1))
        self._binding = binding = network.binding()
        binding.input("logits", logits, logits.shape)
        binding.input("seen", self._seen, self._seen.shape)
        binding.input("settings", self._settings, self._settings.shape)
        binding.output("next_token", self._next_token, self._next_token.shape)
        self._options = device.graph_options(GRAPH_ID)

    def run(self, draw: Draw) -> int:
        """Return the token that the draw takes from the last step's logits."""
        first = self._vocab_size - draw.top_k
        settings = (draw.penalty, draw.temperature, first, draw.cut, draw.min_p, draw.place)
        self._settings.set(np.array(settings))
        if draw.penalty != 1:  # else whatever flags are there change nothing
            seen = np.zeros(self._vocab_size, np.bool_)
            seen[draw.seen] = True
            self._seen.set(seen)
        self._network.run(self._binding, self._options)
        return int(self._next_token.read()[0, 0])
