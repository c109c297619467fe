"""One question on its way through the engine, and the model that answers all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from varco_runtime.backend import Backend, Progress
from varco_runtime.dtypes import Array
from varco_runtime.generation.loop import Decoding
from varco_runtime.generation.prefix_cache import Memory, Span
from varco_runtime.media_encoder import MediaEncoder, Place, VisionTimes


@dataclass(frozen=True, slots=True)
class Model:
    """What the engine works with.

    Args:
        backend: The device.
        memory: What its slots hold, and what is kept of earlier pictures.
        encoder: Makes image tokens of media.
        image_token_id: The id that stands for a picture in prompts.
    """

    backend: Backend
    memory: Memory
    encoder: MediaEncoder
    image_token_id: int


@dataclass(slots=True, eq=False)
class Job:
    """One question: it waits, gets a slot, is prepared and decoded, and leaves.

    The thread that asks reads `tokens`; whichever thread drives the engine writes everything but `cancelled`.

    Args:
        ids: The prompt's token ids.
        places: Its media, and where they stand.
        spans: The positions of all media, by their keys.
        decode: Makes the decoding of an answer from the job, whose `logits` and `slot` are known then; None where the
            logits are all that is wanted.
        num_logits: How many of the prompt's last logits are wanted.

    Attributes:
        progress: Called while the media and the prompt are read.
        slot: Where it works; None before.
        vision: Seconds that its media took.
        num_cached: How many of the prompt's positions were in the cache already.
        prefill_s: Seconds that the others took.
        logits: The prompt's last logits `[num_logits, vocab]` fp32.
        decoding: Its answer, once the prompt is in the cache.
        tokens: Tokens of the answer that nobody has read yet.
        finished: No more tokens will come.
        error: Why it failed, or None.
        cancelled: Nobody wants more tokens. Any thread may set it; the slot is free at the next step.
    """

    ids: list[int]
    places: tuple[Place, ...] = ()
    spans: tuple[Span, ...] = ()
    decode: Callable[[Job], Decoding] | None = None
    num_logits: int = 1
    progress: Progress | None = None
    slot: int | None = None
    work: Iterator[float] | None = None
    vision: VisionTimes = field(default_factory=VisionTimes)
    num_cached: int = 0
    prefill_s: float = 0.0
    logits: Array | None = None
    decoding: Decoding | None = None
    tokens: deque[int] = field(default_factory=deque)
    is_submitted: bool = False
    finished: bool = False
    error: Exception | None = None
    cancelled: bool = False

    @property
    def has_left(self) -> bool:
        """Return whether its slot can be given to another."""
        return self.finished or self.cancelled

    @property
    def is_decoding(self) -> bool:
        """Return whether its answer goes on with the next step."""
        return self.decoding is not None and not self.has_left

    def fail(self, error: Exception) -> None:
        """End it with an error, which whoever reads it is told."""
        self.error = error
        self.finished = True

    def take_error(self) -> Exception:
        """Return the error and let go of it: its traceback refers to this job, and memory would stay until a
        collection."""
        error, self.error = self.error, None
        assert error is not None, "Bug: a job without an error"
        return error

    def deliver(self, tokens: list[int]) -> None:
        """Hand over tokens of the answer. The end is told after them."""
        self.tokens.extend(tokens)
        if self.decoding is None or self.decoding.finished:
            self.finished = True
