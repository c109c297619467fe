"""The interface between the decode loop and a device, with the types of its arguments.

A `Backend` encodes tiles, packs image tokens, prefills a prompt and takes one decode step. What only some devices can
do is a protocol of its own, which the loop looks for with `isinstance`.

Positions are counted from 0; a backend holds the keys and values of one sequence, one that `HoldsSlots` those of one in
each of them. Rewinding is free: prefilling or decoding at an earlier position overwrites what stood there, and
nothing after it is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.dtypes import Array
from varco_runtime.errors import BackendError
from varco_runtime.picture.packing import PackingPlan
from varco_runtime.picture.tiles import normalize

MAX_STEP_TOKENS = 9
"""The most tokens that one step of the decode loop may put: one that is certain and eight drafted ones."""


@dataclass(frozen=True, slots=True)
class PromptInputs:
    """A prompt as the decoder takes it.

    Args:
        ids: Token ids `[n]` int64.
        image_token_id: Where `media_rows` is None and `ids` equals it, the next row of `image_tokens` stands instead of
            a token's embedding: the prompt of one picture.
        image_tokens: What `Backend.pack` returned, or None for text alone.
        media_rows: The row of `image_tokens` that stands at each position, -1 where a token does, `[n]` int64. Of media
            whose positions are in the cache already, rows need not be there.
    """

    ids: Array
    image_token_id: int
    image_tokens: Any | None
    media_rows: Array | None = None

    def rows(self, start: int, end: int) -> Array:
        """Return the row of `image_tokens` at each of the positions `start` .. `end - 1`, -1 where a token stands."""
        if self.media_rows is not None:
            rows: Array = self.media_rows[start:end]
            return rows
        is_image = self.ids[:end] == self.image_token_id
        return np.where(is_image, np.cumsum(is_image) - 1, -1)[start:]


@dataclass(frozen=True, slots=True)
class Features:
    """A picture on its way through the networks, on the host in fp32.

    Args:
        patch_features: What the vision tower gives, `[T, P, C]`.
        image_features: What the projector makes of it, `[T, P, D]`.
        image_tokens: The packed tokens, `[N, D]`.
        packed: The same tokens as `Backend.pack` would return them, in the backend's own memory.
    """

    patch_features: Array
    image_features: Array
    image_tokens: Array
    packed: Any


@dataclass(frozen=True, slots=True)
class Draw:
    """One choice of a token, as far as a device needs to know it to choose as `Sampler.next` would.

    Args:
        penalty: The repetition penalty, for the ids `seen`.
        seen: Token ids `[n]` int64.
        temperature: The number that scores are divided by.
        top_k: How many scores stay, with all that equal the least of them; at least 1, and the vocabulary's size for
            all.
        cut: The part of the probability that top-p removes, from the least score on; below 1.
        min_p: The least probability that stays, relative to the greatest.
        place: The place of the draw among what stays, in 0 .. 1, ids in ascending order; below 1.
    """

    penalty: float
    seen: Array
    temperature: float
    top_k: int
    cut: float
    min_p: float
    place: float


GREEDY = Draw(1.0, np.empty(0, np.int64), 1.0, 1, 0.0, 0.0, 0.0)
"""The greedy choice: of the scores that equal the greatest, the first."""


@runtime_checkable
class ShowsFeatures(Protocol):
    """A backend that lets acceptance probes look between its networks."""

    def features(self, pixel_values: Array, plan: PackingPlan) -> Features:
        """Encode tiles `[T, 3, S, S]` fp32 and pack them, and return everything on the way."""


@runtime_checkable
class StopsRounding(Protocol):
    """A backend that may round the inputs of linears, and can leave that out."""

    def stop_rounding(self) -> bool:
        """Compute without it from here on, more slowly; whether there was any. For acceptance probes."""


class Backend(Protocol):
    """One loaded model on one device, with one key/value cache."""

    @property
    def max_context(self) -> int:
        """Return the number of positions that the cache holds."""

    @property
    def description(self) -> str:
        """Return the device and provider, for people: `onnxruntime 1.31.1, CPU, 2 threads`."""

    def encode(self, pixel_values: Array) -> Any:
        """Return the projected features `[T, P, D]` of tiles `[T, 3, S, S]` fp32, in the backend's own memory."""

    def pack(self, features: Any, plan: PackingPlan) -> Any:
        """Return the image tokens `[N, D]` of the features of a list of media, in the backend's own memory."""

    def prefill(self, inputs: PromptInputs, start: int, num_logits: int = 1) -> Array:
        """Fill positions `start` .. n-1 and return the logits `[num_logits, vocab]` fp32 of the last ones.

        Args:
            inputs: The whole prompt, n positions.
            start: Positions before it keep what an earlier call put there.
            num_logits: How many of the last positions' logits are wanted, at most n - `start`.

        Raises:
            ContextError: The cache does not hold n positions.
            BackendError: The device or its library fails.
        """

    def decode_step(self, token_id: int, position: int) -> Array:
        """Put one token at `position` and return the logits `[vocab]` fp32 after it, valid until the next call."""


@runtime_checkable
class VerifyingBackend(Protocol):
    """A backend on which a step of a few tokens costs less than as many steps, so that drafts may pay."""

    def decode_steps(self, token_ids: Sequence[int], position: int) -> Array:
        """Put tokens from `position` on and return the logits `[n, vocab]` fp32 after each, valid until the next call.

        Args:
            token_ids: At most `MAX_STEP_TOKENS` tokens.
            position: Where the first of them goes.
        """


@runtime_checkable
class GreedyBackend(Protocol):
    """A backend that chooses the most likely token itself, so that no logits leave its device."""

    def decode_greedy(self, token_id: int, position: int) -> int:
        """Put one token at `position` and return the token with the largest logit, the first of equals."""


@runtime_checkable
class GreedyVerifyingBackend(Protocol):
    """A backend that verifies drafts by its own greedy choices, so that no logits leave its device."""

    def decode_greedy_steps(self, token_ids: Sequence[int], position: int) -> list[int]:
        """Put at most `MAX_STEP_TOKENS` tokens from `position` on and return the most likely token behind each."""


@runtime_checkable
class SamplingBackend(Protocol):
    """A backend that draws the next token itself, so that no logits leave its device."""

    def decode_sampled(self, token_id: int, position: int, draw: Draw) -> int:
        """Put one token at `position` and return the one that `draw` takes, as `Sampler.next` would."""


@runtime_checkable
class NormalizesPixels(Protocol):
    """A backend that makes `pixel_values` on its device, to which a quarter of the bytes then go."""

    def encode_pixels(self, tiles: Array) -> Any:
        """Return the projected features of `tile`'s uint8 `[T, 3, S, S]`: what `encode` gives for them normalized."""


@runtime_checkable
class HoldsMedia(Protocol):
    """A backend that holds one list of media at a time, in buffers of a fixed size."""

    @property
    def max_media(self) -> tuple[int, int]:
        """Return the most tiles and the most image tokens that it holds at a time."""


@runtime_checkable
class KeepsPrefixes(Protocol):
    """A backend whose image tokens are arrays `[N, D]` of their own, and whose cache can be copied out and back."""

    @property
    def prefix_bytes_per_position(self) -> int:
        """Return the bytes that one position of a copy takes."""

    def copy_prefix(self, num_positions: int) -> Array:
        """Return a copy of the keys and values of positions 0 .. num_positions - 1."""

    def restore_prefix(self, prefix: Array) -> None:
        """Put a copy back where it came from."""


@runtime_checkable
class HoldsSlots(Protocol):
    """A backend with several key/value caches, its slots, that may encode a picture tile by tile.

    One that is `HoldsMedia` too takes the tiles of a picture a part at a time: `encode` and `encode_pixels` have a
    second argument, the number of tiles that came before.
    """

    @property
    def num_slots(self) -> int:
        """Return the number of slots, at least 1."""

    def select_slot(self, slot: int) -> None:
        """Let every method that prefills, decodes or copies for one sequence work in this slot from here on."""


@runtime_checkable
class BatchingBackend(HoldsSlots, Protocol):
    """A backend that takes a step of several answers in one run."""

    def decode_rows(self, token_ids: Sequence[int], positions: Sequence[int]) -> Array:
        """Put one token into each of the first slots, and return the logits `[n, vocab]` fp32 after them.

        They are valid until the next call. Which slot is selected makes no difference.

        Args:
            token_ids: The tokens of slots 0 .. n-1, at most `num_slots`.
            positions: Where each of them goes in its slot.
        """


@runtime_checkable
class ChoosesRows(Protocol):
    """A `BatchingBackend` that chooses the next token of every row itself: one run, and one copy to the host."""

    def num_rows(self, least: int) -> int:
        """Return of how many rows a step is that has at least so many: there is a captured graph for some numbers."""

    def decode_chosen_rows(
        self, token_ids: Sequence[int], positions: Sequence[int], draws: Sequence[Draw | None]
    ) -> list[int | Array | BackendError]:
        """Put one token into each of the first slots, and return what comes of each row.

        That is the token that its draw takes; its logits `[vocab]` fp32, valid until the next call, where it has None
        for a draw or one that this device cannot take; or the error of a row whose logits are not finite, whose slot
        then holds nothing.

        Args:
            token_ids: The tokens of slots 0 .. n-1; n is one of `num_rows`.
            positions: Where each of them goes in its slot.
            draws: The choice for each row, `GREEDY` for idle ones.
        """


@runtime_checkable
class CopiesSlots(Protocol):
    """A backend with slots that copies from one slot to another within its own memory."""

    def copy_from_slot(self, slot: int, num_positions: int) -> None:
        """Copy the first positions of another slot to the selected one."""


@runtime_checkable
class ReservesMemory(Protocol):
    """A backend whose caches take memory of the system as they fill, unless it is told to take all of it before."""

    def reserve_memory(self) -> None:
        """Take it now; what the caches hold stays as it is. A server runs out of memory at its start, or never."""


@runtime_checkable
class CapturesGraphs(Protocol):
    """A backend that captures steps, keeps what it captured, and counts it."""

    @property
    def graphs_line(self) -> str:
        """Return how many steps are captured and how many may be, for people."""


def num_slots_of(backend: Backend) -> int:
    """Return how many sequences a backend holds."""
    return backend.num_slots if isinstance(backend, HoldsSlots) else 1


Progress = Callable[[str, int, int], None]
"""Called with what is counted (`tiles`, or `tokens` of the prompt), how many are done, and how many there are."""


@runtime_checkable
class ReportsProgress(Protocol):
    """A backend that says how far it is with a picture and a prompt, which take minutes on a slow machine."""

    progress: Progress | None


@contextmanager
def reporting(backend: Backend, progress: Progress | None) -> Iterator[None]:
    """Let the backend call `progress` while this context lasts, if it reports at all."""
    if progress is None or not isinstance(backend, ReportsProgress):
        yield
        return
    backend.progress = progress
    try:
        yield
    finally:
        backend.progress = None


def pixel_path(backend: Backend, settings: ImageSettings) -> tuple[Callable[[Array], Array], Callable[[Array], Any]]:
    """Return what the host does to a picture's uint8 tiles, and the backend's method that takes the result."""
    if isinstance(backend, NormalizesPixels):
        return lambda tiles: tiles, backend.encode_pixels
    return lambda tiles: normalize(tiles, settings), backend.encode
