"""The caches of keys and values on CUDA, laid out for as many positions as the longest sequence in them needs.

Attention of a draft's few tokens (Flash) shares the caches' whole length out among a few blocks per head, for the 14B
3 on an H200 and 5 on an A100, however long the sequence is: of caches for 10,240 positions, one block of each head
would do all the work of a picture's first 3,456. So caches are laid out in bands, as if they were made for 1,024
positions, 4,096 or the most, at the beginning of the same memory. A sequence that outgrows the band is moved to the
next one, head by head on the device, and those of all other slots with it: a step of several rows wants them one behind
the other. The band is the smallest that holds them all.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from varco_runtime.backends.cuda.session import Binding, Buffer, Device
from varco_runtime.bundle.manifest import Manifest, cache_names
from varco_runtime.dtypes import ITEM_BYTES, STORAGE

BANDS = (1024, 4096)
"""Positions of the bands below the longest context. Each is at least twice as long as the one before, so that no move
overlaps itself."""


class KeyValueCaches:
    """Keys and values of every layer, `[slots, num_key_value_heads, capacity, head_dim]` at the beginning of `buffers`.

    They hold zeros at first: what stands beyond a sequence must be finite, for it weighs nothing.
    """

    def __init__(self, device: Device, manifest: Manifest, max_context: int, slots: int = 1) -> None:
        """Allocate the caches.

        Args:
            device: Where they lie.
            manifest: The bundle's, which names their type and shape.
            max_context: Positions of the longest sequence.
            slots: How many sequences there may be.

        Raises:
            ShortageError: The device has too little memory.
        """
        model, dtype = manifest.model, manifest.decoder.compute
        self._device = device
        self._shape = (model.num_key_value_heads, model.head_dim)
        self._row_bytes = model.head_dim * ITEM_BYTES[dtype]
        self.bands = (*(band for band in BANDS if 2 * band <= max_context), max_context)
        self.capacity = self.bands[0]
        self._num_held = [0] * slots
        """Of each slot, the positions that may hold something of use."""
        shape = (slots, model.num_key_value_heads, max_context, model.head_dim)
        zeros = np.zeros(shape, STORAGE[dtype]) if device.place == "cuda" else None
        self.buffers = {name: device.buffer(dtype, shape, zeros) for name in cache_names(model.num_layers)}

    @property
    def max_context(self) -> int:
        """Return the positions of the longest sequence."""
        return self.bands[-1]

    @property
    def num_slots(self) -> int:
        """Return how many sequences there may be."""
        return len(self._num_held)

    @property
    def band(self) -> int:
        """Return the number of the present band, from 0 on."""
        return self.bands.index(self.capacity)

    def lay_out(self, num_positions: int, num_kept: int, slot: int = 0) -> None:
        """Let a slot hold `num_positions`, of which it keeps the first `num_kept`, in the smallest band that does.

        The other slots keep what they hold.
        """
        self._num_held[slot] = num_kept
        needed = max(num_positions, *self._num_held)
        capacity = next(band for band in self.bands if band >= needed)
        if capacity != self.capacity:
            before, self.capacity = self.capacity, capacity
            self._device.move(self._pieces(before, capacity))
        self._num_held[slot] = num_positions

    def reach(self, num_positions: int, num_kept: int, slot: int = 0) -> None:
        """Let a slot hold `num_positions`, and leave the band as it is if they fit."""
        if num_positions > self.capacity:
            self.lay_out(num_positions, num_kept, slot)
        self._num_held[slot] = num_positions

    def _pieces(self, before: int, after: int) -> Iterator[tuple[int, int, int]]:
        """Yield where each head's positions go, where they lie, and their bytes, in an order that overwrites none."""
        num_heads, _ = self._shape
        heads = range(1, num_heads * len(self._num_held))  # of all slots; the first one stays
        for buffer in self.buffers.values():
            address = buffer.value.data_ptr()
            for head in heads if after < before else reversed(heads):
                rows, num_bytes = head * self._row_bytes, self._num_held[head // num_heads] * self._row_bytes
                if num_bytes:
                    yield address + rows * after, address + rows * before, num_bytes

    def copy(self, source: int, target: int, num_positions: int) -> None:
        """Copy the first positions of one slot to another."""
        self.lay_out(num_positions, 0, target)
        num_heads, _ = self._shape
        pitch = self.capacity * self._row_bytes
        self._device.move(
            (address + (target * num_heads + head) * pitch, address + (source * num_heads + head) * pitch, num_bytes)
            for address in (buffer.value.data_ptr() for buffer in self.buffers.values())
            for head in range(num_heads)
            for num_bytes in (num_positions * self._row_bytes,)
        )

    def bind(self, binding: Binding, first: int = 0, num_slots: int = 1) -> None:
        """Bind past and present of some slots at one address: attention appends in place and copies nothing."""
        num_heads, head_dim = self._shape
        shape = (num_slots, num_heads, self.capacity, head_dim)
        offset = first * num_heads * self.capacity * head_dim
        for name, buffer in self.buffers.items():
            binding.input(f"past.{name}", buffer, shape, offset)
            binding.output(f"present.{name}", buffer, shape, offset)

    def clear(self, slot: int = 0) -> None:
        """Fill a slot with zeros again: NaN beyond a sequence would reach the next answer, for nothing times NaN is
        NaN."""
        self._num_held[slot] = 0
        if len(self._num_held) == 1:  # all of it, as it was at first
            first: Buffer = next(iter(self.buffers.values()))
            zeros = np.zeros(first.shape, STORAGE[first.dtype])
            for buffer in self.buffers.values():
                buffer.set(zeros)
            return
        num_heads, _ = self._shape
        num_bytes = num_heads * self.capacity * self._row_bytes
        self._device.clear((buffer.value.data_ptr() + slot * num_bytes, num_bytes) for buffer in self.buffers.values())
