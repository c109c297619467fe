"""One loaded model and the engine that answers with it: what every question about every picture goes through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from varco_runtime.backend import Backend, VerifyingBackend
from varco_runtime.bundle.opening import Bundle
from varco_runtime.conversation import Turn, media_of
from varco_runtime.dtypes import Array
from varco_runtime.engine.driver import Engine
from varco_runtime.engine.job import Job, Model
from varco_runtime.engine.scheduler import DEFAULT_MAX_STALL_MS, Scheduler
from varco_runtime.errors import ContextError
from varco_runtime.generation.prefix_cache import Memory, Span
from varco_runtime.generation.speculation import Chances, Drafter, StepCosts
from varco_runtime.media_encoder import MediaEncoder, Place
from varco_runtime.picture.media import Clip, Medium, parts
from varco_runtime.picture.packing import num_medium_tokens, pooled_side
from varco_runtime.prompt.prompter import Message, Prompter
from varco_runtime.prompt.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as token ids, and the media that stand in it.

    Args:
        ids: The token ids.
        media: The conversation's pictures and videos, in the order of its turns.
        places: Media, or parts of videos that a device takes at a time, with the positions where they stand.
    """

    ids: list[int]
    media: tuple[Medium, ...] = ()
    places: tuple[Place, ...] = ()

    @property
    def num_media_tokens(self) -> int:
        """Return how many of the ids stand for pictures and videos."""
        return sum(place.span.end - place.span.start for place in self.places)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Return the positions of all media, by their keys."""
        return tuple(place.span for place in self.places)

    def followed_by(self, ids: Sequence[int]) -> Prompt:
        """Return the prompt with the ids of an answer behind it."""
        return Prompt([*self.ids, *ids], self.media, self.places)


class Session:
    """One loaded model, what is kept of earlier questions, and the engine that answers.

    Args:
        bundle: What was loaded.
        backend: The device that it was loaded on.
        memory_bytes: Bytes for what is kept of earlier pictures, 0 for the latest picture alone.
        load_s: Seconds that loading took, for the timings of every answer.
        max_stall_ms: How long answers under way wait at most for a new question's picture and prompt, in milliseconds.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        memory_bytes: int,
        load_s: float = 0.0,
        max_stall_ms: float = DEFAULT_MAX_STALL_MS,
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.load_s = load_s
        manifest = bundle.manifest
        self.tokenizer = Tokenizer.from_json(bundle.text(manifest.tokenizer))
        self.prompter = Prompter(
            bundle.text(manifest.chat_template), manifest.prompt, self.tokenizer, manifest.media_facts
        )
        self.memory = Memory(backend, memory_bytes)
        self.encoder = MediaEncoder(backend, manifest.image, self.memory)
        self.chances, self.costs = Chances(), StepCosts()
        model = Model(backend, self.memory, self.encoder, manifest.prompt.image_token_id)
        self.engine = Engine(Scheduler(model, max_stall_ms / 1000))

    # -- before a question's turn -----------------------------------------------------------------------------------

    def prompt(
        self,
        turns: Sequence[Turn],
        tiling: str = "auto",
        untrained: bool = False,
        long_side: int | None = None,
    ) -> Prompt:
        """Return the prompt of a conversation.

        Args:
            turns: The conversation, the oldest turn first.
            tiling: How its pictures become tiles: `auto`, `grid` or `one`.
            untrained: Whether more pictures are let through than the checkpoint was trained for.
            long_side: As `media_of` takes it.

        Raises:
            VarcoError: What `media_of` and `Prompter.encode_media` raise.
        """
        manifest = self.bundle.manifest
        media = media_of(turns, manifest, tiling, untrained, long_side)
        counts = [num_medium_tokens(medium, manifest.image) for medium in media]
        encoded = self.prompter.encode_media([turn.message for turn in turns], counts)
        places = [
            place for medium, start in zip(media, encoded.starts, strict=True) for place in self._places(medium, start)
        ]
        return Prompt(encoded.ids, media, tuple(sorted(places, key=lambda place: place.span.start)))

    def _places(self, medium: Medium, start: int) -> Iterator[Place]:
        for part in parts(medium, self.encoder.max_frames):
            end = start + num_medium_tokens(part, self.bundle.manifest.image)
            yield Place(part, Span(start, end, part.key))
            start = end

    def room(self, prompt: Prompt) -> int:
        """Return how many tokens the context holds behind a prompt.

        Raises:
            ContextError: None. It says how many of the prompt's tokens are the media's, and how many frames would fit.
        """
        room = self.backend.max_context - len(prompt.ids)
        if room < 1:
            raise ContextError(
                f"The prompt has {len(prompt.ids)} tokens{_whose(prompt)}, the context holds "
                f"{self.backend.max_context} and needs room for an answer. {self._advice(prompt, 1 - room)}, or load "
                f"with a larger max_context (this bundle allows {self.bundle.manifest.max_context})."
            )
        return room

    def _advice(self, prompt: Prompt, num_over: int) -> str:
        """Return what to ask instead of a prompt that is `num_over` tokens too long."""
        clips = [medium.source for medium in prompt.media if isinstance(medium.source, Clip)]
        if clips:
            num_frames = sum(len(clip.tiles) for clip in clips)
            per_frame = pooled_side(self.bundle.manifest.image) ** 2
            fit = num_frames + -num_over // per_frame  # rounded down
            if fit > 0:
                return f"Ask with at most {fit} frames instead of {num_frames}"
        fit, settings = len(prompt.media), self.bundle.manifest.image
        while fit and num_over > 0:
            fit -= 1
            num_over -= num_medium_tokens(prompt.media[fit], settings)
        if fit and num_over <= 0:
            return f"Ask about fewer pictures: the first {fit} of {len(prompt.media)} fit"
        if len(prompt.media) > 1:
            return "Ask about fewer or smaller pictures"
        return "Ask less, use a smaller picture"

    # -- its turn ---------------------------------------------------------------------------------------------------

    def score(self, prompt: Prompt, num_logits: int) -> Array:
        """Return the last logits `[num_logits, vocab]` fp32 of a prompt, once it is its turn."""
        job = Job(prompt.ids, prompt.places, prompt.spans, num_logits=num_logits)
        self.engine.next_token(job)
        assert job.logits is not None, "Bug: a job that ended without its logits"
        return job.logits

    def drafter(self, ids: Sequence[int]) -> Drafter | None:
        """Return what drafts an answer to the prompt `ids`, None if the backend does not verify several tokens at once.

        Only the thread that runs the engine's step calls it.
        """
        if not isinstance(self.backend, VerifyingBackend):
            return None
        manifest = self.bundle.manifest
        placeholders = manifest.prompt.image_token_id, manifest.media_facts.video_token_id
        words = (id_ for id_ in ids if id_ not in placeholders)
        return Drafter(self.tokenizer, words, self.chances, self.costs)

    def prefill_opening(self) -> None:
        """Put into the cache what every question begins with: the template's system message, up to the user's words."""
        questions = [self.prompter.encode([Message("user", words)], 0) for words in ("a", "b")]
        opening = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*questions, strict=False))]
        if opening and len(opening) < self.backend.max_context:
            for _ in self.engine.scheduler.preparation.pieces(Job(opening, slot=0)):
                pass  # whole, since no answer waits


def _whose(prompt: Prompt) -> str:
    """Return how many of a prompt's tokens are whose, as a part of a sentence."""
    num_tokens = prompt.num_media_tokens
    if not num_tokens:
        return ""
    num_videos = sum(isinstance(medium.source, Clip) for medium in prompt.media)
    num_pictures = len(prompt.media) - num_videos
    named = [
        "" if not count else f"the {what}'s" if count == 1 else f"the {count} {what}s'"
        for count, what in ((num_pictures, "picture"), (num_videos, "video"))
    ]
    return f", {num_tokens} of them {' and '.join(filter(None, named))}"
