"""One loaded model with its one key/value cache: what every question about every picture goes through."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from varco_runtime.backend import Backend, PromptInputs, VerifyingBackend, pixel_path
from varco_runtime.bundle.opening import Bundle
from varco_runtime.dtypes import Array
from varco_runtime.errors import ContextError, UsageError
from varco_runtime.generation.prefix_cache import Memory
from varco_runtime.generation.speculation import Chances, Drafter, StepCosts
from varco_runtime.markup.questions import OCR_PROMPT
from varco_runtime.picture.loading import Picture
from varco_runtime.picture.packing import num_image_tokens, packing_plan
from varco_runtime.picture.scaling import upscaled
from varco_runtime.picture.tiles import tile
from varco_runtime.prompt.prompter import Message, Prompter
from varco_runtime.prompt.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """A picture's image tokens, in the backend's own memory, and the seconds that they took."""

    digest: str
    tokens: Any
    preprocess_s: float = 0.0
    vision_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt that is in the cache.

    Args:
        turn: The cache is this prompt's as long as it is the session's turn.
        logits: The last logits `[num_logits, vocab]` fp32, valid until the next call of the backend.
        num_cached: How many of its positions were in the cache already.
        prefill_s: Seconds that the others took.
        picture: Its picture, or None.
    """

    turn: int
    logits: Array
    num_cached: int
    prefill_s: float
    picture: EncodedPicture | None


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
        self.prompter = Prompter(bundle.text(manifest.chat_template), manifest.prompt, self.tokenizer)
        self.memory = Memory(backend, manifest.prompt.image_token_id, memory_bytes)
        self.chances, self.costs = Chances(), StepCosts()
        self.lock = threading.Lock()
        """Held by whoever uses the backend, `memory`, `chances` or `costs`, or takes a turn."""
        self._turn = 0
        """The number of prompts that were put into the cache: it belongs to the latest one."""

    # -- before a question's turn -----------------------------------------------------------------------------------

    def shown(self, picture: Picture, messages: Sequence[Message], long_side: int | None = None) -> Picture:
        """Return a conversation's picture as the model is shown it.

        Args:
            picture: The picture.
            messages: The turns. Where the one with the picture asks for its text, the bundle says how large it is.
            long_side: The length in pixels to which the long side is brought up, 0 for the picture as it is, None for
                what the bundle says.
        """
        if long_side is None and any(one.image and one.text == OCR_PROMPT for one in messages):
            long_side = self.bundle.manifest.image.ocr_long_side_px
        return upscaled(picture, long_side or 0)

    def prompt_ids(self, messages: Sequence[Message], picture: Picture | None) -> tuple[list[int], int]:
        """Return the token ids of a prompt, and how many of them stand for its picture."""
        num_tokens = 0 if picture is None else num_image_tokens(picture.size_hw, self.bundle.manifest.image)
        return self.prompter.encode(messages, num_tokens), num_tokens

    def room(self, num_tokens: int, num_image_tokens: int) -> int:
        """Return how many tokens the context holds behind a prompt.

        Raises:
            ContextError: None. It says how many of the prompt's tokens are the picture's.
        """
        room = self.backend.max_context - num_tokens
        if room < 1:
            detail = f", {num_image_tokens} of them the picture's" if num_image_tokens else ""
            raise ContextError(
                f"The prompt has {num_tokens} tokens{detail}, the context holds {self.backend.max_context} and needs "
                "room for an answer. Ask less, use a smaller picture, or load with a larger max_context (this bundle "
                f"allows {self.bundle.manifest.max_context})."
            )
        return room

    # -- its turn: the caller holds the lock ------------------------------------------------------------------------

    def prefill(self, ids: list[int], picture: Picture | None, num_logits: int = 1) -> Prefilled:
        """Put a prompt into the cache, which is that prompt's from here on. The caller holds `lock`.

        The turn is taken under the lock, in the order of the prefills. Were it taken before, an older question that
        came second to the lock would overwrite the cache of a newer one, which would go on without noticing.
        """
        self._turn += 1
        turn = self._turn
        encoded = None if picture is None else self.encode_picture(picture)
        started = time.perf_counter()
        logits, num_cached = self._fill_cache(ids, encoded, num_logits)
        return Prefilled(turn, logits, num_cached, time.perf_counter() - started, encoded)

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
        image_token_id = self.bundle.manifest.prompt.image_token_id
        words = (id_ for id_ in ids if id_ != image_token_id)
        return Drafter(self.tokenizer, words, self.chances, self.costs)

    def encode_picture(self, picture: Picture) -> EncodedPicture:
        """Return a picture's image tokens, and keep them for the next question about it. The caller holds `lock`."""
        tokens = self.memory.image_tokens(picture.digest)
        if tokens is not None:
            return EncodedPicture(picture.digest, tokens)
        self.memory.make_room()
        settings = self.bundle.manifest.image
        started = time.perf_counter()
        prepare, encode = pixel_path(self.backend, settings)
        pixels = prepare(tile(picture, settings))
        tiled = time.perf_counter()
        features = encode(pixels)
        tokens = self.backend.pack(features, packing_plan(picture.size_hw, settings))
        self.memory.keep_image_tokens(picture.digest, tokens)
        return EncodedPicture(picture.digest, tokens, tiled - started, time.perf_counter() - tiled)

    def prefill_opening(self) -> None:
        """Put into the cache what every question begins with: the template's system message, up to the user's words."""
        questions = [self.prompter.encode([Message("user", words)], 0) for words in ("a", "b")]
        opening = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*questions, strict=False))]
        if opening and len(opening) < self.backend.max_context:
            self._fill_cache(opening, None)

    def _fill_cache(self, ids: list[int], encoded: EncodedPicture | None, num_logits: int = 1) -> tuple[Array, int]:
        """Bring the cache to `ids`; return the last logits `[num_logits, vocab]` and how many positions it had."""
        image_token_id = self.bundle.manifest.prompt.image_token_id
        cached = self.memory.prepare(ids, None if encoded is None else encoded.digest, num_logits)
        tokens = None if encoded is None else encoded.tokens
        inputs = PromptInputs(np.array(ids, dtype=np.int64), image_token_id, tokens)
        logits = self.backend.prefill(inputs, cached, num_logits)
        if np.isfinite(logits[..., 0]).all():
            self.memory.sequence.ids = list(ids)
        else:  # nor are the caches; the sampler refuses the logits, and the next question finds nothing cached
            self.memory.forget_sequence()
        return logits, cached
