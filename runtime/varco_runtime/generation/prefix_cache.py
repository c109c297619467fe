"""The cache of earlier prompts, so that a question about media seen before computes none of them again.

Kept are the ids of the sequence in each slot of the key/value cache with the media that stand in it, and for other
conversations, whichever slot they came to, the image tokens of each medium and the keys and values of their prompts. A
medium is known by its key, its digest and how it is tiled: a conversation that begins with the same media shares the
prompt up to the first difference.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from typing import Any

from varco_runtime.backend import Backend, CopiesSlots, HoldsSlots, KeepsPrefixes, num_slots_of

DEFAULT_MEMORY_MB = 512
"""For media other than the present ones: some seven 0.5B prompts of 3,000 positions, or image tokens alone."""


@dataclass(frozen=True, slots=True)
class Span:
    """The positions `start` .. `end - 1` of a prompt, where the image tokens of the medium `key` stand."""

    start: int
    end: int
    key: Hashable


@dataclass(slots=True)
class Sequence:
    """What a slot of the key/value cache holds: these ids, and in these spans image tokens, in order."""

    ids: list[int] = field(default_factory=list)
    spans: tuple[Span, ...] = ()

    def common_prefix(self, ids: list[int], spans: tuple[Span, ...]) -> int:
        """Return how many leading positions of a new prompt need not be computed.

        The last position always is computed, for its logits.
        """
        limit = min(len(self.ids), len(ids) - 1)
        for index in range(max(len(self.spans), len(spans))):
            both = [one[index] for one in (self.spans, spans) if index < len(one)]
            if len(both) == 1 or both[0] != both[1]:
                limit = min(limit, *(span.start for span in both))
                break
        return next((i for i in range(limit) if self.ids[i] != ids[i]), limit)


@dataclass(frozen=True, slots=True)
class _Kept:
    """One thing kept, and its size."""

    value: Any
    num_bytes: int


class Memory:
    """The sequence of each slot, and a bounded store of other media, the least recently used dropped first.

    One slot is selected at a time: `sequence`, `prepare` and the backend's own methods are about that one.

    The image tokens of the latest media are kept whatever their size. A backend that is no `KeepsPrefixes` holds one
    list of media at a time in its own memory, so that nothing else is kept for it.

    Args:
        backend: Holds the key/value cache.
        max_bytes: Bytes of the store, 0 for none.
    """

    def __init__(self, backend: Backend, max_bytes: int) -> None:
        self._backend = backend
        self._max_bytes = max_bytes if isinstance(backend, KeepsPrefixes) else 0
        self._latest: dict[Hashable, Any] = {}
        self._kept: OrderedDict[tuple[str, Hashable], _Kept] = OrderedDict()
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
        if slot != self._selected and isinstance(self._backend, HoldsSlots):
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

    def forget(self, slot: int) -> None:
        """Take a slot for empty."""
        self._sequences[slot] = Sequence()

    def slot_for(self, ids: list[int], spans: tuple[Span, ...], free: list[int]) -> int:
        """Return the free slot that holds the longest beginning of a prompt; of equals the first.

        A step of several answers runs over all slots up to the last one in use.
        """
        return min(free, key=lambda slot: (-self._sequences[slot].common_prefix(ids, spans), slot))

    # -- the store's size -------------------------------------------------------------------------------------------

    @property
    def num_bytes(self) -> int:
        """Return the bytes of everything in the store. Any thread may ask."""
        return sum(kept.num_bytes for kept in list(self._kept.values()))

    # -- image tokens -----------------------------------------------------------------------------------------------

    def image_tokens(self, key: Hashable) -> Any | None:
        """Return the image tokens of a medium seen before, or None."""
        if key not in self._latest:
            kept = self._kept.get(("tokens", key))
            if kept is None:
                return None
            self._latest[key] = kept.value
        self.touch(key)
        return self._latest[key]

    def make_room(self, keys: Collection[Hashable]) -> None:
        """Drop the latest media's tokens but for those of `keys`, before a new medium is encoded.

        What the store holds stays there.
        """
        self._latest = {key: tokens for key, tokens in self._latest.items() if key in keys}

    def keep_image_tokens(self, key: Hashable, tokens: Any) -> None:
        """Keep the image tokens of one of the latest media, in the store too if it has room."""
        self._latest[key] = tokens
        if self._max_bytes:
            self._keep("tokens", key, tokens, tokens.nbytes)

    def touch(self, key: Hashable) -> None:
        """Take note that a medium is in use."""
        self._touch("tokens", key)

    # -- keys and values --------------------------------------------------------------------------------------------

    def prepare(self, ids: list[int], spans: tuple[Span, ...], num_logits: int) -> int:
        """Make the selected slot hold as much of a new prompt as is known, and return how many positions that is.

        The last `num_logits` positions are left to compute.

        A prompt with media that would be overwritten is copied out first; one that was copied out before is copied back
        where it holds more than the slot does, and so is what another slot holds.
        """
        same = self.sequence.common_prefix(ids, spans)
        known, kept = self._longest_kept(ids, spans)
        self._keep_prefix(same)
        if kept is not None and known > same:
            sequence, prefix = kept.value
            self.sequence = Sequence()  # should the copy fail halfway
            assert isinstance(self._backend, KeepsPrefixes)
            self._backend.restore_prefix(prefix)
            self._touch("prefix", _keys(sequence.spans))
            same = known
        same = max(same, self._copied_from_other(ids, spans, same))
        same = min(same, len(ids) - num_logits)
        # Only what is certain to be in the cache is claimed, should prefill fail halfway.
        self.sequence = Sequence(ids[:same], tuple(span for span in spans if span.start < same))
        return same

    def _copied_from_other(self, ids: list[int], spans: tuple[Span, ...], same: int) -> int:
        """Copy the longest beginning of a prompt that another slot holds, if that is more than `same` positions.

        Returns how many positions that is, 0 where no slot holds more.
        """
        here = self._slot
        shared = {
            slot: sequence.common_prefix(ids, spans) for slot, sequence in enumerate(self._sequences) if slot != here
        }
        other = max(shared, key=lambda slot: shared[slot], default=here)
        if shared.get(other, 0) <= same or not isinstance(self._backend, KeepsPrefixes | CopiesSlots):
            return 0
        self.sequence = Sequence()  # should the copy fail halfway
        if isinstance(self._backend, CopiesSlots):
            self._backend.copy_from_slot(other, shared[other])
            return shared[other]
        try:
            self.select(other)
            prefix = self._backend.copy_prefix(shared[other])
        finally:
            self.select(here)
        self._backend.restore_prefix(prefix)
        return shared[other]

    def _longest_kept(self, ids: list[int], spans: tuple[Span, ...]) -> tuple[int, _Kept | None]:
        """Return how much of a new prompt the kept one holds that holds most of it, and that one."""
        best: tuple[int, _Kept | None] = (0, None)
        for (kind, _), kept in self._kept.items():
            if kind != "prefix" or not spans or kept.value[0].spans[0] != spans[0]:
                continue
            known = kept.value[0].common_prefix(ids, spans)
            if known > best[0]:
                best = known, kept
        return best

    def _keep_prefix(self, same: int) -> None:
        """Copy what the cache holds of a prompt with media, up to the last one, if that will be overwritten."""
        sequence = self.sequence
        spans = tuple(span for span in sequence.spans if span.end <= len(sequence.ids))
        if not self._max_bytes or not spans or spans[-1].end <= same:
            return
        end, keys = spans[-1].end, _keys(spans)
        kept = self._kept.get(("prefix", keys))
        if kept is not None and kept.value[0].ids == sequence.ids[:end]:
            return
        assert isinstance(self._backend, KeepsPrefixes)
        if end * self._backend.prefix_bytes_per_position > self._max_bytes:
            return
        prefix = self._backend.copy_prefix(end)
        self._keep("prefix", keys, (Sequence(sequence.ids[:end], spans), prefix), prefix.nbytes)

    def forget_sequence(self) -> None:
        """Take the cache for empty: what a failed step left in it is not trusted."""
        self.sequence = Sequence()

    # -- the store --------------------------------------------------------------------------------------------------

    def _keep(self, kind: str, key: Hashable, value: Any, num_bytes: int) -> None:
        self._kept.pop((kind, key), None)
        if num_bytes > self._max_bytes:
            return
        self._kept[kind, key] = _Kept(value, num_bytes)
        while self.num_bytes > self._max_bytes:
            self._kept.popitem(last=False)

    def _touch(self, kind: str, key: Hashable) -> None:
        if (kind, key) in self._kept:
            self._kept.move_to_end((kind, key))


def _keys(spans: tuple[Span, ...]) -> tuple[Hashable, ...]:
    return tuple(span.key for span in spans)
