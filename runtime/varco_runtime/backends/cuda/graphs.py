"""Which runs are captured as CUDA graphs: the provider keeps every graph until the session ends, so they are counted.

Steps differ in their number of tokens, the band of the caches, their number of rows and, for one sequence, its slot:
some hundreds of graphs, of which a program uses a few. Loading captures those of the first slot. A step beside them is
captured when it is first taken, as long as there is room for its graph, and runs launch by launch from then on.
"""

from __future__ import annotations

from typing import Any

from varco_runtime.backends.cuda.session import Device


class Graphs:
    """The graphs of one session.

    Args:
        device: Where they run.
        most: How many there may be, on each thread.
    """

    def __init__(self, device: Device, most: int) -> None:
        self._device = device
        self.most = most
        self._options: dict[tuple[int, ...], Any | None] = {}

    def options(self, *step: int) -> Any | None:
        """Return the options of the runs of a step, which are captured and replayed; None for runs without a graph.

        Args:
            *step: What tells it from every other one of the session.
        """
        if step not in self._options:
            has_room = len(self._options) < self.most
            self._options[step] = self._device.graph_options(len(self._options) + 1) if has_room else None
        return self._options[step]

    @property
    def count(self) -> int:
        """Return how many steps have a graph."""
        return sum(options is not None for options in self._options.values())
