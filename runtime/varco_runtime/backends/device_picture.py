"""A picture in a device's memory, and how large the buffers are that hold it and its question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the buffers hold at most.

    Attributes:
        batch_tiles: Tiles in one run of the vision tower.
        picture_tiles: Tiles of a picture.
        image_tokens: Image tokens of a picture.
        prefill_tokens: Positions in one run of a prompt.
        num_logits: Rows of logits that a run gives.
        max_context: Positions of a slot's caches.
        slots: How many sequences the caches hold.
    """

    batch_tiles: int
    picture_tiles: int
    image_tokens: int
    prefill_tokens: int
    num_logits: int
    max_context: int
    slots: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class DeviceFeatures:
    """Projected features of the tiles of a list of media, on the device until the next list."""

    num_tiles: int


@dataclass(frozen=True, slots=True, eq=False)
class DeviceImageTokens:
    """Image tokens `[num_tokens, D]` of a list of media, on the device until the next list.

    Attributes:
        num_tokens: How many there are.
        rows: The device's buffer, for a backend that copies rows of it; None where a graph reads them by itself.
    """

    num_tokens: int
    rows: Any = None
