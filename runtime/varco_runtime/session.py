"""One loaded model with its one key/value cache: what every question about every picture goes through."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from varco_runtime.backend import Backend, PromptInputs, VerifyingBackend
from varco_runtime.bundle.opening import Bundle
from varco_runtime.conversation import Turn, media_of
from varco_runtime.dtypes import Array
from varco_runtime.errors import ContextError, UsageError
from varco_runtime.generation.prefix_cache import Memory, Span
from varco_runtime.generation.prefix_cache import Sequence as Cached
from varco_runtime.generation.speculation import Chances, Drafter, StepCosts
from varco_runtime.media_encoder import MediaEncoder, Place, VisionTimes
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


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt that is in the cache.

    Args:
        turn: The cache is this prompt's as long as it is the session's turn.
        logits: The last logits `[num_logits, vocab]` fp32, valid until the next call of the backend.
        num_cached: How many of its positions were in the cache already.
        prefill_s: Seconds that the others took, those of the media apart.
        times: Seconds that the media took.
    """

    turn: int
    logits: Array
    num_cached: int
    prefill_s: float
    times: VisionTimes


class Session:
    """One loaded model, its cache, and whose turn it is to use them.

    Args:
        bundle: What was loaded.
        backend: The device that it was loaded on.
        memory_bytes: Bytes for what is kept of earlier pictures, 0 for the latest picture alone.
        load_s: Seconds that loading took, for the timings of every answer.
    """

    def __init__(self, bundle: Bundle, backend: Backend, memory_bytes: int, load_s: float = 0.0) -> None:
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
        self.lock = threading.Lock()
        """Held by whoever uses the backend, `memory`, `chances` or `costs`, or takes a turn."""
        self._turn = 0
        """The number of prompts that were put into the cache: it belongs to the latest one."""

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
        if len(prompt.media) > 1:
            return "Ask about fewer pictures"
        return "Ask less, use a smaller picture"

    # -- its turn: the caller holds the lock ------------------------------------------------------------------------

    def prefill(self, prompt: Prompt, num_logits: int = 1) -> Prefilled:
        """Put a prompt into the cache, which is that prompt's from here on. The caller holds `lock`.

        The turn is taken under the lock, in the order of the prefills. Were it taken before, an older question that
        came second to the lock would overwrite the cache of a newer one, which would go on without noticing.
        """
        self._turn += 1
        turn, times = self._turn, VisionTimes()
        started = time.perf_counter()
        logits, num_cached = self._fill_cache(prompt, num_logits, times)
        seconds = time.perf_counter() - started - times.preprocess_s - times.vision_s
        return Prefilled(turn, logits, num_cached, seconds, times)

    def next_token(self, prefilled: Prefilled, tokens: Iterator[int]) -> int | None:
        """Return the next token of an answer, None behind the last. The caller holds `lock`.

        Raises:
            UsageError: Another prompt was put into the cache meanwhile.
        """
        if self._turn != prefilled.turn:
            raise UsageError("A newer question ended this stream. Read a stream to its end before the next question.")
        try:
            return next(tokens, None)
        except Exception:
            self.memory.forget_sequence()
            raise

    def count_token(self, token: int) -> None:
        """Take note that a token of the answer is in the cache. The caller holds `lock`."""
        self.memory.sequence.ids.append(token)

    def drafter(self, ids: Sequence[int]) -> Drafter | None:
        """Return what drafts an answer to the prompt `ids`, None if the backend does not verify several tokens at once.

        The caller holds `lock`.
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
            self._fill_cache(Prompt(opening), 1, VisionTimes())

    def _fill_cache(self, prompt: Prompt, num_logits: int, times: VisionTimes) -> tuple[Array, int]:
        """Bring the cache to a prompt; return the last logits `[num_logits, vocab]` and how many positions it had.

        Media whose positions are in the cache are not encoded. A device that cannot hold all others at a time takes
        the prompt in runs: each group of media, and the prompt up to the next group.
        """
        ids = prompt.ids
        start = cached = self.memory.prepare(ids, prompt.spans, num_logits)
        for place in prompt.places:
            self.memory.touch(place.span.key)
        groups = self.encoder.groups([place for place in prompt.places if place.span.end > cached])
        ends = [*(group[0].span.start for group in groups[1:]), len(ids)]
        for index, end in enumerate(ends):
            tokens, rows = (None, {}) if not groups else self.encoder.tokens(groups[index], times)
            media_rows = np.full(end, -1, np.int64)
            for place in groups[index] if groups else ():
                span = place.span
                media_rows[span.start : span.end] = np.arange(rows[span.key], rows[span.key] + span.end - span.start)
            inputs = PromptInputs(np.array(ids[:end], dtype=np.int64), self._image_token_id, tokens, media_rows)
            logits = self.backend.prefill(inputs, start, num_logits if end == len(ids) else 1)
            start = end
        if np.isfinite(logits[..., 0]).all():
            self.memory.sequence = Cached(list(ids), prompt.spans)
        else:  # nor are the caches; the sampler refuses the logits, and the next question finds nothing cached
            self.memory.forget_sequence()
        return logits, cached

    @property
    def _image_token_id(self) -> int:
        return self.bundle.manifest.prompt.image_token_id


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
