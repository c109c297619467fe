"""What the worker counts for the metrics."""

from __future__ import annotations

from varco_runtime import Varco


class Tally:
    """Counts what answers found in the model's memory. It keeps no sums, which whoever starts workers outlives.

    Args:
        varco: The model.
    """

    def __init__(self, varco: Varco) -> None:
        self._memory = varco.session.memory
        self._max_context = varco.backend.max_context

    def counts(self, num_pictures: int, num_encoded: int) -> dict[str, int]:
        """Return what is told at the end of an answer, by the names of `messages.Stats`.

        Args:
            num_pictures: The answer's pictures.
            num_encoded: How many of them were not known from an earlier question.
        """
        num_slots = self._memory.num_slots
        return {
            "kv_tokens": sum(len(self._memory.sequence_in(slot).ids) for slot in range(num_slots)),
            "kv_max_tokens": num_slots * self._max_context,
            "kept_bytes": self._memory.num_bytes,
            "picture_hits": max(0, num_pictures - num_encoded),
            "picture_misses": min(num_pictures, num_encoded),
        }
