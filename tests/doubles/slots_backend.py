"""A backend with several slots and no model: its logits are a hash of what a slot's cache holds up to a position.

So an answer is right only where every position of its slot holds what the question and the answer so far put there.
Time is a counter that each call raises by what it costs.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from varco_runtime.backend import GREEDY, Draw, PromptInputs
from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.errors import BackendError
from varco_runtime.picture.packing import PackingPlan

Array = np.ndarray[Any, Any]

VOCAB_SIZE, MAX_CONTEXT = 32, 64
EOS, IMAGE = 0, 99
NAN_TOKEN, RAISING_TOKEN = 30, 31
"""In a prompt: its logits are NaN from the second step on, or its steps fail."""
SETTINGS = ImageSettings(8, 4, ((8, 8), (8, 16), (16, 8)), None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1 / 255)


@dataclass(slots=True)
class Prices:
    """Seconds: of a tile, of a prompt's token, of a step of one row, and of each further row of a step."""

    tile_s: float = 0.02
    token_s: float = 0.001
    step_s: float = 0.01
    row_s: float = 0.002


@dataclass(slots=True)
class Time:
    """A clock that stands still unless somebody works."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class SlotsBackend:
    """See `BatchingBackend`, `VerifyingBackend` and `KeepsPrefixes`. `log` has what was done, in order."""

    num_slots: int
    prices: Prices = field(default_factory=Prices)
    clock: Time = field(default_factory=Time)

    def __post_init__(self) -> None:
        self.cache = np.full((self.num_slots, MAX_CONTEXT), -1, np.int64)
        self.slot = 0
        self.log: list[tuple[str, int]] = []
        self.max_context = MAX_CONTEXT
        self.description = "no model"

    def select_slot(self, slot: int) -> None:
        self.slot = slot

    def encode(self, pixel_values: Array) -> Array:
        self._work("tiles", len(pixel_values), self.prices.tile_s * len(pixel_values))
        return pixel_values.reshape(len(pixel_values), 1, -1)

    def pack(self, features: Array, plan: PackingPlan) -> Array:
        return np.full((plan.num_tokens, 1), 1000 + zlib.crc32(np.ascontiguousarray(features).tobytes()))

    def prefill(self, inputs: PromptInputs, start: int, num_logits: int = 1) -> Array:
        values, rows = inputs.ids.copy(), inputs.rows(0, len(inputs.ids))
        if inputs.image_tokens is not None:
            values[rows >= 0] = inputs.image_tokens[rows[rows >= 0], 0]
        total = len(values)
        assert 0 <= start < total <= MAX_CONTEXT
        assert 1 <= num_logits <= total - start
        self._work("prefill", total - start, self.prices.token_s * (total - start))
        self.cache[self.slot, start:total] = values[start:]
        return np.stack([self._logits(self.slot, at) for at in range(total - num_logits, total)])

    def decode_step(self, token_id: int, position: int) -> Array:
        row: Array = self.decode_steps((token_id,), position)[0]
        return row

    def decode_steps(self, token_ids: Sequence[int], position: int) -> Array:
        self._work("alone", self.slot, self.prices.step_s)
        self._refuse(self.slot, position)
        self.cache[self.slot, position : position + len(token_ids)] = token_ids
        return self._spoiled(self.slot, [self._logits(self.slot, position + at) for at in range(len(token_ids))])

    def decode_rows(self, token_ids: Sequence[int], positions: Sequence[int]) -> Array:
        num_rows = len(token_ids)
        self._work("together", num_rows, self.prices.step_s + self.prices.row_s * (num_rows - 1))
        for slot, position in enumerate(positions):
            self._refuse(slot, position)
        self.cache[range(num_rows), positions] = token_ids
        rows = [self._spoiled(slot, [self._logits(slot, at)])[0] for slot, at in enumerate(positions)]
        return np.stack(rows)

    @property
    def prefix_bytes_per_position(self) -> int:
        return 8

    def copy_prefix(self, num_positions: int) -> Array:
        return self.cache[self.slot, :num_positions].copy()

    def restore_prefix(self, prefix: Array) -> None:
        self.cache[self.slot, : len(prefix)] = prefix

    def _work(self, what: str, count: int, seconds: float) -> None:
        self.log.append((what, count))
        self.clock.now += seconds

    def _logits(self, slot: int, position: int) -> Array:
        seed = zlib.crc32(self.cache[slot, : position + 1].tobytes())
        logits = np.random.default_rng(seed).standard_normal(VOCAB_SIZE).astype(np.float32)
        logits[EOS] -= 2  # few answers end by themselves
        logits[NAN_TOKEN:] = -100  # and none says what prompts alone may
        return logits

    def _spoiled(self, slot: int, rows: list[Array]) -> Array:
        return np.stack(rows) * (np.nan if NAN_TOKEN in self.cache[slot] else 1)

    def _refuse(self, slot: int, position: int) -> None:
        if RAISING_TOKEN in self.cache[slot, :position]:
            raise BackendError("injected")


class ChoosingSlotsBackend(SlotsBackend):
    """One that chooses itself, as a GPU does: greedy choices alone, in steps of 1, 2, 4 or 8 rows or of all.

    A slot whose logits are not finite is cleared, and then holds nothing.
    """

    def num_rows(self, least: int) -> int:
        return min(1 << (least - 1).bit_length(), self.num_slots)

    def decode_chosen_rows(
        self, token_ids: Sequence[int], positions: Sequence[int], draws: Sequence[Draw | None]
    ) -> list[int | Array | BackendError]:
        assert len(token_ids) == self.num_rows(len(token_ids)), "a number of rows that was not captured"
        outcomes: list[int | Array | BackendError] = []
        for slot, (logits, draw) in enumerate(zip(self.decode_rows(token_ids, positions), draws, strict=True)):
            if not np.isfinite(logits).all():
                self.cache[slot] = -1
                outcomes.append(BackendError(f"slot {slot} gave logits that are not finite numbers"))
            else:
                outcomes.append(int(logits.argmax()) if draw is GREEDY else logits)
        return outcomes

    def copy_from_slot(self, slot: int, num_positions: int) -> None:
        self.cache[self.slot, :num_positions] = self.cache[slot, :num_positions]
