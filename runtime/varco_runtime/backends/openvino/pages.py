"""Keys and values of all slots, in pages of a few positions, as OpenVINO's paged attention reads and writes them.

Each slot has a row of pages of its own, as many as the context needs. How a page looks inside is the device's affair:
pages are copied whole.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from varco_runtime.backends.openvino.attention import (
    LONGEST,
    PAGE_STARTS,
    PAGES,
    PAST_LENGTHS,
    POSITIONS,
    ROW_STARTS,
)
from varco_runtime.dtypes import Array


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one sequence in a run.

    Args:
        slot: Its slot.
        position: Where the first of them goes.
        number: How many.
    """

    slot: int
    position: int
    number: int

    @property
    def end(self) -> int:
        """Return how many positions the sequence has after the run."""
        return self.position + self.number


class Pages:
    """The pages of one compiled decoder.

    Args:
        openvino: The module.
        core: The `Core` that compiled the decoder.
        decoder: The compiled decoder.
        device: Its device, in OpenVINO's name.
        num_slots: How many sequences.
        max_context: The most positions of each.
    """

    def __init__(self, openvino: Any, core: Any, decoder: Any, device: str, num_slots: int, max_context: int) -> None:
        self._openvino = openvino
        ports = [port for port in decoder.inputs if len(port.get_partial_shape()) == _PAGE_RANK]
        page_shapes = [[dim.get_length() for dim in list(port.get_partial_shape())[1:]] for port in ports]
        self._positions: int = min(shape[1] for shape in page_shapes)
        """In a page. A page whose numbers are rounded has further rows, for their scales."""
        self._slot_pages = -(-max_context // self._positions)
        self._arrays: list[Array] = []
        """In the host's memory; those of a GPU are its own."""
        self._tensors: dict[str, Any] = {}
        context = None if device == "CPU" else core.get_default_context(device)
        for port, page_shape in zip(ports, page_shapes, strict=True):
            shape = openvino.Shape([num_slots * self._slot_pages, *page_shape])
            dtype = port.get_element_type()
            if context is None:
                # Mapped as it is first written, so that a short context costs no memory for a long one.
                self._arrays.append(np.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.size), np.uint8))
                tensor = openvino.Tensor(self._arrays[-1], shape, dtype)
            else:
                tensor = context.create_tensor(dtype, shape, {})
            self._tensors[port.get_any_name()] = tensor
        self._bytes: int = sum(tensor.byte_size for tensor in self._tensors.values()) // (num_slots * self._slot_pages)
        """Of one page of every layer's keys and values."""

    @property
    def bytes_per_position(self) -> int:
        """Return the bytes of one position, its share of scales included."""
        return -(-self._bytes // self._positions)

    def bind(self, request: Any) -> None:
        """Let a request read and write these pages."""
        for name, tensor in self._tensors.items():
            request.set_tensor(name, tensor)

    def reserve(self) -> None:
        """Take all memory from the system now: each of its pages is written, as it is."""
        for array in self._arrays:
            pages = array[:: mmap.PAGESIZE]
            np.bitwise_or(pages, 0, out=pages)

    def feeds(self, sequences: Sequence[Rows]) -> dict[str, Array]:
        """Return the inputs of a run that say whose its rows and pages are; the rows stand in this order."""
        used = [np.arange(self._used(rows.end)) + rows.slot * self._slot_pages for rows in sequences]
        return {
            POSITIONS: np.concatenate([np.arange(rows.position, rows.end) for rows in sequences]),
            PAST_LENGTHS: np.array([rows.position for rows in sequences], np.int32),
            ROW_STARTS: _starts([rows.number for rows in sequences]),
            PAGES: np.concatenate(used).astype(np.int32),
            PAGE_STARTS: _starts([len(pages) for pages in used]),
            LONGEST: np.array(max(rows.end for rows in sequences), np.int32),
        }

    def copy(self, slot: int, num_positions: int) -> Array:
        """Return the pages of a slot's first positions as bytes `[n]`, one layer's keys or values after another."""
        count = self._used(num_positions)
        copied = np.empty(count * self._bytes, np.uint8)
        for kept, part in self._parts(slot, count, copied):
            part.copy_to(kept)
        return copied

    def restore(self, slot: int, copied: Array) -> None:
        """Put a copy into a slot."""
        for kept, part in self._parts(slot, len(copied) // self._bytes, copied):
            kept.copy_to(part)

    def copy_between(self, source: int, target: int, num_positions: int) -> None:
        """Copy the first positions of one slot to another."""
        count = self._used(num_positions)
        for tensor in self._tensors.values():
            self._part(tensor, source, count).copy_to(self._part(tensor, target, count))

    def _parts(self, slot: int, count: int, copied: Array) -> list[tuple[Any, Any]]:
        """Return, of each of the tensors, a piece of the bytes `copied` and the first pages of a slot."""
        pairs, start = [], 0
        for tensor in self._tensors.values():
            part = self._part(tensor, slot, count)
            end = start + part.get_byte_size()
            pairs.append((self._openvino.Tensor(copied[start:end], part.get_shape(), part.get_element_type()), part))
            start = end
        return pairs

    def _part(self, tensor: Any, slot: int, count: int) -> Any:
        """Return the first pages of a slot: a view."""
        first, page = slot * self._slot_pages, list(tensor.get_shape())[1:]
        return type(tensor)(tensor, [first, 0, 0, 0], [first + count, *page])

    def _used(self, num_positions: int) -> int:
        """Return how many pages so many positions take."""
        return -(-num_positions // self._positions)


_PAGE_RANK = 4
"""Pages, heads, positions and width. No other input has so many dimensions."""


def _starts(numbers: Sequence[int]) -> Array:
    """Return where each of several pieces begins, and where the last one ends, int32 `[n + 1]`."""
    starts: Array = np.cumsum([0, *numbers]).astype(np.int32)
    return starts
