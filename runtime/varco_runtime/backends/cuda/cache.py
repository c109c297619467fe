"""The caches of keys and values on CUDA, laid out for as many positions as the sequence in them needs.

Attention of a draft's few tokens (Flash) shares the caches' whole length out among a few blocks per head, for the 14B
3 on an H200 and 5 on an A100, however long the sequence is: of caches for 10,240 positions, one block of each head
would do all the work of a picture's first 3,456. So caches are laid out in bands, as if they were made for 1,024
positions, 4,096 or the most, at the beginning of the same memory. A sequence that outgrows its band is moved to the
next one, head by head on the device; a prompt begins in the smallest that holds it.
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
    """Keys and values of every layer, `[1, num_key_value_heads, capacity, head_dim]` at the beginning of `buffers`.

    They hold zeros at first: what stands beyond the sequence must be finite, for it weighs nothing.
    """

    def __init__(self, device: Device, manifest: Manifest, max_context: int) -> None:
        """Allocate the caches.

        Args:
            device: Where they lie.
            manifest: The bundle's, which names their type and shape.
            max_context: Positions of the longest sequence.

        Raises:
            ShortageError: The device has too little memory.
        """
        model, dtype = manifest.model, manifest.decoder.compute
        self._device = device
        self._shape = (model.num_key_value_heads, model.head_dim)
        self._row_bytes = model.head_dim * ITEM_BYTES[dtype]
        self.bands = (*(band for band in BANDS if 2 * band <= max_context), max_context)
        self.capacity = self.bands[0]
        shape = (1, model.num_key_value_heads, max_context, model.head_dim)
        zeros = np.zeros(shape, STORAGE[dtype]) if device.place == "cuda" else None
        self.buffers = {name: device.buffer(dtype, shape, zeros) for name in cache_names(model.num_layers)}

    @property
    def band(self) -> int:
        """Return the number of the present band, from 0 on."""
        return self.bands.index(self.capacity)

    def lay_out(self, num_positions: int, num_kept: int) -> None:
        """Take the smallest band that holds `num_positions`, and the first `num_kept` of them along."""
        capacity = next(band for band in self.bands if band >= num_positions)
        if capacity != self.capacity:
            before, self.capacity = self.capacity, capacity
            self._device.move(self._pieces(before, capacity, num_kept))

    def _pieces(self, before: int, after: int, num_kept: int) -> Iterator[tuple[int, int, int]]:
        """Yield where each head's positions go, where they lie, and their bytes, in an order that overwrites none."""
        num_heads, _ = self._shape
        heads = range(1, num_heads)  # the first one stays
        num_bytes = num_kept * self._row_bytes
        for buffer in self.buffers.values():
            address = buffer.value.data_ptr()
            for head in heads if after < before else reversed(heads):
                rows = head * self._row_bytes
                if num_bytes:
                    yield address + rows * after, address + rows * before, num_bytes

    def bind(self, binding: Binding) -> None:
        """Bind past and present at one address: attention appends in place and copies nothing."""
        num_heads, head_dim = self._shape
        shape = (1, num_heads, self.capacity, head_dim)
        for name, buffer in self.buffers.items():
            binding.input(f"past.{name}", buffer, shape)
            binding.output(f"present.{name}", buffer, shape)

    def clear(self) -> None:
        """Fill with zeros again: NaN beyond the sequence would reach the next answer, for nothing times NaN is NaN."""
        first: Buffer = next(iter(self.buffers.values()))
        zeros = np.zeros(first.shape, STORAGE[first.dtype])
        for buffer in self.buffers.values():
            buffer.set(zeros)
