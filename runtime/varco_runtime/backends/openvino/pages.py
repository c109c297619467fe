"""Keys and values of all slots, in pages of a few positions, as OpenVINO's paged attention reads and writes them.

Each slot has a row of pages of its own, as many as the context needs. How a page looks inside is the device's affair:
pages are copied whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from varco_runtime.backends.host import take_memory
from varco_runtime.backends.openvino.attention import (
    LONGEST,
    PAGE_STARTS,
    PAGES,
    PAST_LENGTHS,
    POSITIONS,
    ROW_STARTS,
)
from varco_runtime.dtypes import Array

_RANK = 4
"""Pages, heads, positions and width. No other input has so many dimensions."""
_FORMATS = {"f32": "fp32", "f16": "fp16"}
_ALIGNMENT = 64


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


class PageLayout:
    """What a compiled decoder asks of its pages.

    Args:
        decoder: The compiled decoder.
    """

    def __init__(self, decoder: Any) -> None:
        self.ports: dict[str, tuple[list[int], Any]] = {}
        """By name: the shape of a page `[heads, positions, width]`, as the device lays it out, and the type."""
        for port in decoder.inputs:
            shape = list(port.get_partial_shape())
            if len(shape) == _RANK:
                self.ports[port.get_any_name()] = [dim.get_length() for dim in shape[1:]], port.get_element_type()
        self.positions: int = next(shape[1] for name, (shape, _) in self.ports.items() if name.endswith("value"))
        """In a page. Rows of keys may stand otherwise, or have their scales behind them."""
        self.num_bytes: int = sum(math.prod(shape) * dtype.size for shape, dtype in self.ports.values())
        """Of one page of every layer's keys and values."""

    @property
    def bytes_per_position(self) -> int:
        """Return the bytes of one position, its share of scales included."""
        return -(-self.num_bytes // self.positions)

    @property
    def format(self) -> str:
        """Return the format of keys and values by our name: `bf16`."""
        _, dtype = next(iter(self.ports.values()))
        name = str(dtype.get_type_name())
        return _FORMATS.get(name, name)

    def pages(self, num_positions: int) -> int:
        """Return how many pages so many positions take."""
        return -(-num_positions // self.positions)


class Pages:
    """The pages of one compiled decoder.

    Args:
        openvino: The module.
        layout: What the decoder asks of them.
        context: The GPU's, which gives of its memory; None for the host's.
        num_slots: How many sequences.
        max_context: The most positions of each.
    """

    def __init__(self, openvino: Any, layout: PageLayout, context: Any, num_slots: int, max_context: int) -> None:
        self._openvino = openvino
        self._layout = layout
        self._slot_pages = layout.pages(max_context)
        self._arrays: list[Array] = []
        """In the host's memory; those of a GPU are its own."""
        self._tensors: dict[str, Any] = {}
        for name, (page, dtype) in layout.ports.items():
            shape = openvino.Shape([num_slots * self._slot_pages, *page])
            if context is None:
                self._arrays.append(_zeros(math.prod(shape) * dtype.size))
                self._tensors[name] = openvino.Tensor(self._arrays[-1], shape, dtype)
            else:
                self._tensors[name] = context.create_tensor(dtype, shape, {})

    def bind(self, request: Any) -> None:
        """Let a request read and write these pages."""
        for name, tensor in self._tensors.items():
            request.set_tensor(name, tensor)

    def reserve(self) -> None:
        """Take all memory from the system now: each of its pages is written, as it is."""
        for array in self._arrays:
            take_memory(array)

    def feeds(self, sequences: Sequence[Rows]) -> dict[str, Array]:
        """Return the inputs of a run that say whose its rows and pages are; the rows stand in this order."""
        used = [np.arange(self._layout.pages(rows.end)) + rows.slot * self._slot_pages for rows in sequences]
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
        count = self._layout.pages(num_positions)
        copied = np.empty(count * self._layout.num_bytes, np.uint8)
        for kept, part in self._parts(slot, count, copied):
            part.copy_to(kept)
        return copied

    def restore(self, slot: int, copied: Array) -> None:
        """Put a copy into a slot."""
        count = len(copied) // self._layout.num_bytes
        assert count <= self._slot_pages, f"Bug: a copy of {count} pages, a slot has {self._slot_pages}"
        for kept, part in self._parts(slot, count, copied):
            kept.copy_to(part)

    def copy_between(self, source: int, target: int, num_positions: int) -> None:
        """Copy the first positions of one slot to another."""
        count = self._layout.pages(num_positions)
        for name in self._tensors:
            self._part(name, source, count).copy_to(self._part(name, target, count))

    def _parts(self, slot: int, count: int, copied: Array) -> list[tuple[Any, Any]]:
        """Return, of each of the tensors, a piece of the bytes `copied` and the first pages of a slot."""
        pairs, start = [], 0
        for name, (_, dtype) in self._layout.ports.items():
            part = self._part(name, slot, count)
            end = start + part.get_byte_size()
            pairs.append((self._openvino.Tensor(copied[start:end], part.get_shape(), dtype), part))
            start = end
        return pairs

    def _part(self, name: str, slot: int, count: int) -> Any:
        """Return the first pages of a slot: a view."""
        tensor, (page, _) = self._tensors[name], self._layout.ports[name]
        first = slot * self._slot_pages
        return type(tensor)(tensor, [first, 0, 0, 0], [first + count, *page])


def _zeros(num_bytes: int) -> Array:
    """Return bytes that begin where a processor's widest load does.

    The system gives their memory as it is first written, so that a short context costs none for a long one.
    """
    raw = np.zeros(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes]


def _starts(numbers: Sequence[int]) -> Array:
    """Return where each of several pieces begins, and where the last one ends, int32 `[n + 1]`."""
    starts: Array = np.cumsum([0, *numbers]).astype(np.int32)
    return starts
