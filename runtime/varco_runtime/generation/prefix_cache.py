"""The cache of earlier prompts, so that a question about a picture seen before computes none of it again.

Kept are the ids of the sequence in each slot of the key/value cache, and for other pictures, whichever slot they came
to, their image tokens and the keys and values of their prompts.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from varco_runtime.backend import Backend, BatchingBackend, KeepsPrefixes, num_slots_of

DEFAULT_MEMORY_MB = 512
"""For pictures other than the present one: some seven 0.5B prompts of 3,000 positions, or image tokens alone."""


@dataclass(slots=True)
class Sequence:
    """What a slot of the key/value cache holds: these ids, with this picture's tokens where the ids say image."""

    ids: list[int] = field(default_factory=list)
    digest: str | None = None

    def common_prefix(self, ids: list[int], digest: str | None, image_token_id: int) -> int:
        """Return how many leading positions of a new prompt need not be computed.

        The last position always is computed, for its logits.
        """
        limit = min(len(self.ids), len(ids) - 1)
        same = next((i for i in range(limit) if self.ids[i] != ids[i]), limit)
        if self.digest != digest and image_token_id in ids[:same]:
            same = ids.index(image_token_id)
        return same


@dataclass(frozen=True, slots=True)
class _Kept:
    """One thing kept, and its size."""

    value: Any
    num_bytes: int


class Memory:
    """The sequence of each slot, and a bounded store of other pictures, the least recently used dropped first.

    One slot is selected at a time: `sequence`, `prepare` and the backend's own methods are about that one.

    The image tokens of the latest picture are kept whatever their size. A backend that is no `KeepsPrefixes` holds one
    picture at a time in its own memory, so that nothing else is kept for it.

    Args:
        backend: Holds the key/value cache.
        image_token_id: The id that stands for a picture in prompts.
        max_bytes: Bytes of the store, 0 for none.
    """

    def __init__(self, backend: Backend, image_token_id: int, max_bytes: int) -> None:
        self._backend = backend
        self._image_token_id = image_token_id
        self._max_bytes = max_bytes if isinstance(backend, KeepsPrefixes) else 0
        self._latest: tuple[str, Any] | None = None
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._sequences = [Sequence() for _ in range(num_slots_of(backend))]
        self._slot = 0
        self._selected: int | None = 0
        """The slot that the backend works in, None where that is not known."""

    # -- slots ------------------------------------------------------------------------------------------------------

    @property
    def num_slots(self) -> int:
        """Return the number of slots."""
        return len(self._sequences)

    def select(self, slot: int) -> None:
        """Let this memory and its backend work in a slot from here on."""
        if slot != self._selected and isinstance(self._backend, BatchingBackend):
            self._selected = None  # should an interrupt come in between
            self._backend.select_slot(slot)
        self._slot = self._selected = slot

    def sequence_in(self, slot: int) -> Sequence:
        """Return what a slot holds."""
        return self._sequences[slot]

    @property
    def sequence(self) -> Sequence:
        """What the selected slot holds."""
        return self._sequences[self._slot]

    @sequence.setter
    def sequence(self, sequence: Sequence) -> None:
        self._sequences[self._slot] = sequence

    def slot_for(self, ids: list[int], digest: str | None, free: list[int]) -> int:
        """Return the free slot that holds the longest beginning of a prompt; of equals the one that holds least."""

        def rank(slot: int) -> tuple[int, int, int]:
            held = self._sequences[slot]
            return -held.common_prefix(ids, digest, self._image_token_id), len(held.ids), slot

        return min(free, key=rank)

    # -- the store's size -------------------------------------------------------------------------------------------

    @property
    def num_bytes(self) -> int:
        """Return the bytes of everything in the store."""
        return sum(kept.num_bytes for kept in self._kept.values())

    # -- image tokens -----------------------------------------------------------------------------------------------

    def image_tokens(self, digest: str) -> Any | None:
        """Return the image tokens of a picture seen before, or None."""
        if self._latest is None or self._latest[0] != digest:
            kept = self._kept.get(("tokens", digest))
            if kept is None:
                return None
            self._latest = (digest, kept.value)
        self._touch("tokens", digest)
        return self._latest[1]

    def make_room(self) -> None:
        """Drop the latest picture's tokens, unless they are in the store, before a new picture is encoded."""
        self._latest = None

    def keep_image_tokens(self, digest: str, tokens: Any) -> None:
        """Keep the image tokens of the latest picture, in the store too if it has room."""
        self._latest = (digest, tokens)
        if self._max_bytes:
            self._keep("tokens", digest, tokens, tokens.nbytes)

    # -- keys and values --------------------------------------------------------------------------------------------

    def prepare(self, ids: list[int], digest: str | None, num_logits: int) -> int:
        """Make the selected slot hold as much of a new prompt as is known, and return how many positions that is.

        The last `num_logits` positions are left to compute.

        A picture's prompt that would be overwritten is copied out first; one that was copied out before is copied back
        where it holds more than the slot does, and so is what another slot holds.
        """
        same = self.sequence.common_prefix(ids, digest, self._image_token_id)
        kept = self._kept.get(("prefix", digest)) if digest is not None else None
        known = 0 if kept is None else kept.value[0].common_prefix(ids, digest, self._image_token_id)
        self._keep_prefix(same)
        if kept is not None and known > same:
            sequence, prefix = kept.value
            self.sequence = Sequence()  # should the copy fail halfway
            assert isinstance(self._backend, KeepsPrefixes)
            self._backend.restore_prefix(prefix)
            self._touch("prefix", sequence.digest)
            same = known
        same = max(same, self._copied_from_other(ids, digest, same))
        same = min(same, len(ids) - num_logits)
        # Only what is certain to be in the cache is claimed, should prefill fail halfway.
        self.sequence = Sequence(ids[:same], digest)
        return same

    def _copied_from_other(self, ids: list[int], digest: str | None, same: int) -> int:
        """Copy the longest beginning of a prompt that another slot holds, if that is more than `same` positions.

        Returns how many positions that is, 0 where no slot holds more.
        """
        here = self._slot
        shared = {
            slot: sequence.common_prefix(ids, digest, self._image_token_id)
            for slot, sequence in enumerate(self._sequences)
            if slot != here
        }
        other = max(shared, key=lambda slot: shared[slot], default=here)
        if shared.get(other, 0) <= same or not isinstance(self._backend, KeepsPrefixes):
            return 0
        self.sequence = Sequence()  # should the copy fail halfway
        try:
            self.select(other)
            prefix = self._backend.copy_prefix(shared[other])
        finally:
            self.select(here)
        self._backend.restore_prefix(prefix)
        return shared[other]

    def _keep_prefix(self, same: int) -> None:
        """Copy what the cache holds of a picture's prompt, up to its last image token, if that will be overwritten."""
        ids, digest = self.sequence.ids, self.sequence.digest
        if not self._max_bytes or digest is None or self._image_token_id not in ids[same:]:
            return
        end = len(ids) - ids[::-1].index(self._image_token_id)
        kept = self._kept.get(("prefix", digest))
        if kept is not None and kept.value[0].ids == ids[:end]:
            return
        assert isinstance(self._backend, KeepsPrefixes)
        if end * self._backend.prefix_bytes_per_position > self._max_bytes:
            return
        prefix = self._backend.copy_prefix(end)
        self._keep("prefix", digest, (Sequence(ids[:end], digest), prefix), prefix.nbytes)

    def forget_sequence(self) -> None:
        """Take the cache for empty: what a failed step left in it is not trusted."""
        self.sequence = Sequence()

    # -- the store --------------------------------------------------------------------------------------------------

    def _keep(self, kind: str, digest: str, value: Any, num_bytes: int) -> None:
        self._kept.pop((kind, digest), None)
        if num_bytes > self._max_bytes:
            return
        self._kept[kind, digest] = _Kept(value, num_bytes)
        while self.num_bytes > self._max_bytes:
            self._kept.popitem(last=False)

    def _touch(self, kind: str, digest: str | None) -> None:
        if digest is not None and (kind, digest) in self._kept:
            self._kept.move_to_end((kind, digest))
