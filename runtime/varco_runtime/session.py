"""One loaded model and the engine that answers with it: what every question about every picture goes through."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from varco_runtime.backend import Backend, PromptInputs, VerifyingBackend
from varco_runtime.bundle.opening import Bundle
from varco_runtime.dtypes import Array
from varco_runtime.engine.driver import Engine
from varco_runtime.engine.job import EncodedPicture, Job, Model
from varco_runtime.engine.scheduler import DEFAULT_MAX_STALL_MS, Scheduler
from varco_runtime.errors import ContextError
from varco_runtime.generation.prefix_cache import Memory
from varco_runtime.generation.speculation import Chances, Drafter, StepCosts
from varco_runtime.picture.loading import Picture
from varco_runtime.picture.packing import num_image_tokens
from varco_runtime.prompt.prompter import Message, Prompter
from varco_runtime.prompt.tokenizer import Tokenizer


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
        self.prompter = Prompter(bundle.text(manifest.chat_template), manifest.prompt, self.tokenizer)
        self.memory = Memory(backend, manifest.prompt.image_token_id, memory_bytes)
        self.chances, self.costs = Chances(), StepCosts()
        model = Model(backend, self.memory, manifest.image, manifest.prompt.image_token_id)
        self.engine = Engine(Scheduler(model, max_stall_ms / 1000))

    # -- before a question's turn -----------------------------------------------------------------------------------

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

    # -- its turn ---------------------------------------------------------------------------------------------------

    def score(self, ids: list[int], picture: Picture | None, num_logits: int) -> Array:
        """Return the last logits `[num_logits, vocab]` fp32 of a prompt, once it is its turn."""
        job = Job(ids, picture, num_logits=num_logits)
        self.engine.next_token(job)
        assert job.logits is not None, "Bug: a job that ended without its logits"
        return job.logits

    def drafter(self, ids: Sequence[int]) -> Drafter | None:
        """Return what drafts an answer to the prompt `ids`, None if the backend does not verify several tokens at once.

        For the thread that runs the engine's step.
        """
        if not isinstance(self.backend, VerifyingBackend):
            return None
        image_token_id = self.bundle.manifest.prompt.image_token_id
        words = (id_ for id_ in ids if id_ != image_token_id)
        return Drafter(self.tokenizer, words, self.chances, self.costs)

    def encode_picture(self, picture: Picture) -> EncodedPicture:
        """Return a picture's image tokens, and keep them for the next question about it. For a model nobody asks."""
        pieces = self.engine.scheduler.preparation.encode(picture)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                encoded: EncodedPicture = end.value
                return encoded

    def prefill_opening(self) -> None:
        """Put into the cache what every question begins with: the template's system message, up to the user's words."""
        questions = [self.prompter.encode([Message("user", words)], 0) for words in ("a", "b")]
        opening = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*questions, strict=False))]
        if opening and len(opening) < self.backend.max_context:
            cached = self.memory.prepare(opening, None, 1)
            inputs = PromptInputs(np.array(opening, dtype=np.int64), self.bundle.manifest.prompt.image_token_id, None)
            if np.isfinite(self.backend.prefill(inputs, cached)[..., 0]).all():
                self.memory.sequence.ids = list(opening)
            else:
                self.memory.forget_sequence()
