"""What the worker counts for the metrics."""

from __future__ import annotations

import threading
from typing import Any

from varco_runtime import Varco
from varco_serve.messages import Done, Event


class Tally:
    """Counts of all answers so far.

    Args:
        varco: The model.
    """

    def __init__(self, varco: Varco) -> None:
        self._memory = varco.session.memory
        self._max_context = varco.backend.max_context
        self._counting = threading.Lock()
        self._hits = self._misses = 0

    def after(self, event: Event) -> dict[str, Any]:
        """Count an event; return what a frame says of all so far, nothing except at the end of an answer."""
        if not isinstance(event, Done):
            return {}
        document = event.document
        with self._counting:
            num_pictures = len(document["media"])
            if document["timings"]["vision_s"] > 0:
                self._misses += num_pictures
            else:
                self._hits += num_pictures
            num_slots = self._memory.num_slots
            held = sum(len(self._memory.sequence_in(slot).ids) for slot in range(num_slots))
            return {
                "stats": {
                    "kv_tokens": held,
                    "kv_max_tokens": num_slots * self._max_context,
                    "picture_hits": self._hits,
                    "picture_misses": self._misses,
                }
            }
