"""What the front and the worker tell each other: an `Ask`, and the events that answer it.

The same types serve the front's routes and the tests' doubles; `codec.py` takes them over the wire.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from varco_runtime.answer.token_score import TokenScore


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Pixels:
    """A decoded picture.

    Args:
        width: Pixels, upright.
        height: Pixels, upright.
        rgb: `height * width * 3` bytes, row by row.
        is_animated: Whether it is the first of several frames.
    """

    width: int
    height: int
    rgb: bytes
    is_animated: bool = False


@dataclass(frozen=True, slots=True)
class AskTurn:
    """One turn: a role (`system`, `user`, `assistant`), and texts and indices into `Ask.pictures` in their order."""

    role: str
    parts: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer that is asked for.

    Args:
        turns: The conversation, the oldest turn first.
        pictures: All of its pictures.
        options: Options of `varco_runtime.options.Options`, by name; what JSON can hold.
        grammar: What the answer must look like: `{"kind": "json_schema", "schema": {..}}`, `{"kind": "json_object"}`
            or `{"kind": "markup", "task": "ocr" | "ground" | "refer"}`; None for any answer.
    """

    turns: tuple[AskTurn, ...]
    pictures: tuple[Pixels, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    grammar: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """The answer's prompt has been taken: it has a place in the worker."""

    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Said:
    """What the answer went on with.

    Args:
        text: Text with markup.
        plain_text: Text without it.
        regions: Regions that it closed, as `varco_runtime.answer.formats.to_json_regions` gives them.
        tokens: Its tokens, where their probabilities were asked for.
    """

    text: str
    plain_text: str
    regions: tuple[dict[str, Any], ...] = ()
    tokens: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The answer's end: `Answer.to_dict()`, the document of `varco run --json`."""

    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer failed.

    Args:
        status: The HTTP status that says so where nothing was sent yet.
        message: One line for the caller, without a path, an address or a name of our code.
        code: OpenAI's short name of the error, such as `context_length_exceeded`; None without one.
        param: The field of the request that is at fault, or None.
        retry_after_s: When it is worth asking again, or None.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None


Event: TypeAlias = Begun | Said | Done | Failed


@dataclass(frozen=True, slots=True)
class Facts:
    """What the worker says about the model once it is loaded; None before.

    Args:
        max_context: Tokens of a prompt and its answer.
        slots: Answers at once.
        max_images: Pictures of a conversation, or None where the model says no number.
        largest_picture_tokens: Image tokens of the largest picture.
        details: What `/v1/metadata` says: bundle, precision, device, licence of the weights.
    """

    max_context: int
    slots: int
    max_images: int | None
    largest_picture_tokens: int
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stats:
    """How the processes feel, for metrics.

    Args:
        running: Answers that have a slot.
        waiting: Asks that wait for one.
        kv_tokens: Positions that the slots' caches hold.
        kv_max_tokens: Positions that they have room for.
        kept_bytes: What is kept of earlier pictures beside them.
        picture_hits: Pictures whose tokens were kept from an earlier question.
        picture_misses: Pictures that were encoded.
        restarts: How often the worker or the picture process was started again.
    """

    running: int = 0
    waiting: int = 0
    kv_tokens: int = 0
    kv_max_tokens: int = 0
    kept_bytes: int = 0
    picture_hits: int = 0
    picture_misses: int = 0
    restarts: int = 0


class Model(Protocol):
    """What the front's routes ask. `supervisor/` implements it over the worker, tests by doubles."""

    @property
    def facts(self) -> Facts | None:
        """Return what the worker said about the model; None while it has not been loaded for the first time."""

    @property
    def not_ready(self) -> str | None:
        """Return why no new question is taken (`loading`, `draining`) or the model is away (`restarting`), or None."""

    @property
    def stats(self) -> Stats:
        """Return how the processes feel."""

    def ask(self, ask: Ask) -> AsyncIterator[Event]:
        """Return the events of one answer: `Begun`, `Said`s, then `Done` or `Failed`.

        Closing the iterator (`aclose`) or cancelling the task that reads it cancels the answer. A full queue is a
        `Failed` with status 429, at once.
        """

    async def decode(self, data: bytes) -> Pixels | Failed:
        """Return a picture file's pixels, or why there are none."""
