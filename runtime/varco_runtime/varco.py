"""The one file that knows all stages: picture, tiles, features, image tokens, prompt, prefill, decode loop, text,
regions."""

from __future__ import annotations

import difflib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from numbers import Integral
from typing import Any, TypedDict, Unpack

import numpy as np

from varco_runtime.answer import Answer, Piece, Timings, Usage
from varco_runtime.backend import Array, Backend, PromptInputs, VerifyingBackend, pixel_path
from varco_runtime.bundle import Bundle
from varco_runtime.cores import usable_cores
from varco_runtime.errors import ContextError, ImageError, UsageError
from varco_runtime.generation import Transcript, generate_tokens
from varco_runtime.image import packing_plan, tile
from varco_runtime.markup import OCR_PROMPT, Box, ground_prompt, refer_prompt
from varco_runtime.memory import DEFAULT_MEMORY_MB, Memory
from varco_runtime.picture import Picture, Source, load_picture
from varco_runtime.prompt import Message, Prompter
from varco_runtime.providers import check_provider, open_provider
from varco_runtime.sampling import Sampler, SamplingSettings
from varco_runtime.speculation import Chances, Drafter, StepCosts
from varco_runtime.tokenizer import Tokenizer

MAX_NEW_TOKENS = 1024
LEAST_MOST_THREADS = 64
"""So many threads are allowed on any machine; more only where there are as many cores."""


class Options(TypedDict, total=False):
    """How to answer; see `Varco.ask`."""

    system: str | None
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float | None
    seed: int | None
    stop: str | tuple[str, ...] | list[str]
    speculate: bool


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A picture's image tokens and what they cost."""

    digest: str
    tokens: Any
    preprocess_s: float = 0.0
    vision_s: float = 0.0


class Varco:
    """A loaded bundle that answers questions. One question at a time: it holds one key/value cache.

    ```
    varco = Varco.load("bundle")
    answer = varco.ask("cats.png", "Describe this image.")
    ```
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        load_s: float = 0.0,
        provider: str = "as given",
        memory_mb: int = DEFAULT_MEMORY_MB,
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.provider = provider  # what it runs on and why, for people
        self.load_s = load_s
        manifest = bundle.manifest
        self._tokenizer = Tokenizer.from_json(bundle.text(manifest.tokenizer))
        self._prompter = Prompter(bundle.text(manifest.chat_template), manifest.prompt, self._tokenizer)
        self._memory = Memory(backend, manifest.prompt.image_token_id, memory_mb << 20)
        self._chances, self._costs = Chances(), StepCosts()
        self._lock = threading.Lock()
        self._turn = 0

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str],
        provider: str = "auto",
        max_context: int | None = None,
        threads: int | None = None,
        verify: str = "quick",
        progress: Callable[[str, int], None] | None = None,
        memory_mb: int = DEFAULT_MEMORY_MB,
    ) -> Varco:
        """Check and load a bundle.

        `provider`: `cpu`, `cuda`, `tensorrt`, or `auto`, what the bundle was exported for. `max_context`: at most the
        bundle's; less saves memory, but not with engines, whose caches have a fixed size. `threads`: processor
        threads, default all. `verify`: `quick` hashes large files once, `full` always; `progress(file, num_bytes)` is
        called meanwhile. `memory_mb`: megabytes for what is kept of earlier pictures (image tokens, keys and values) on
        the CPU, 0 for the latest picture alone.
        Raises `BundleError`, `BackendError`, `UsageError` or `MissingExtraError`.
        """
        started = time.perf_counter()
        check_provider(provider)
        if verify not in ("quick", "full"):
            raise UsageError(f"verify={verify!r} is unknown. Expected 'quick' or 'full'.")
        if threads is not None and threads < 1:
            raise UsageError(f"threads={threads} is too few. Expected at least 1.")
        # Threads beyond the cores wait for each other: 1,000 on two cores need minutes for what two do in a second.
        most = max(LEAST_MOST_THREADS, os.cpu_count() or 1)
        if threads is not None and threads > most:
            raise UsageError(f"threads={threads} is too many. Expected at most {most}; the cores are {usable_cores()}.")
        if memory_mb < 0:
            raise UsageError(f"memory_mb={memory_mb} is too few. Expected 0 (the latest picture alone) or more.")
        opened = Bundle.open(bundle, verify, progress)
        limit = opened.manifest.max_context
        if max_context is not None and not 16 <= max_context <= limit:
            raise UsageError(
                f"max_context={max_context} is out of range. Expected 16 to {limit}, the bundle's maximum."
            )
        chosen = open_provider(opened, provider, max_context, threads)
        varco = cls(opened, chosen.backend, provider=chosen.line, memory_mb=memory_mb)
        varco._prefill_opening()
        varco.load_s = time.perf_counter() - started
        return varco

    # -- questions --------------------------------------------------------------------------------------------------

    def ask(self, image: Source | None, prompt: str, **options: Unpack[Options]) -> Answer:
        """Ask about a picture, or with None about nothing but the prompt.

        Options, all off or as the checkpoint says by default: `system` (a system message), `max_new_tokens` 1024,
        `temperature` 0 (greedy), `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed`, `stop` (strings that end
        the answer), `speculate` (False turns drafts off; they change how fast an answer comes and not what it says).
        Raises `ImageError`, `PromptError`, `ContextError` or `UsageError`; the model stays usable.
        """
        return self.stream(image, prompt, **options).run()

    def stream(self, image: Source | None, prompt: str, **options: Unpack[Options]) -> Stream:
        """Like `ask`, but gives `Piece`s as they come. The `Stream`'s `answer` is there at its end."""
        return self._stream(image, _messages(prompt, image is not None, options.get("system")), options)

    def ocr(self, image: Source, **options: Unpack[Options]) -> Answer:
        """Read the text in a picture: regions of kind `text`."""
        _need_picture(image, "ocr")
        return self.ask(image, OCR_PROMPT, **options)

    def ground(self, image: Source, prompt: str, **options: Unpack[Options]) -> Answer:
        """Ask for an answer that locates what it names: regions of kind `object`."""
        _need_picture(image, "ground")
        return self.ask(image, ground_prompt(prompt), **options)

    def refer(
        self,
        image: Source,
        prompt: str,
        text: str,
        box: Box | tuple[float, float, float, float],
        **options: Unpack[Options],
    ) -> Answer:
        """Ask about a region: `{object}` in the prompt becomes `text` with its `box` (x1, y1, x2, y2 in 0..1)."""
        _need_picture(image, "refer")
        return self.ask(image, refer_prompt(prompt, text, box), **options)

    def score(self, image: Source | None, prompt: str, token_ids: Sequence[int], system: str | None = None) -> Array:
        """Logits `[len(token_ids), vocab]` fp32 at each position of a given answer (teacher forcing).

        Row i is what the model would say after the prompt and the answer's first i tokens. To compare precisions.
        """
        if len(token_ids) == 0:  # an array of them has no truth value
            raise UsageError("There is no answer to score. Give at least one token id.")
        self._check_ids(token_ids, image is not None)
        picture = None if image is None else load_picture(image)
        plan = None if picture is None else packing_plan(picture.size_hw, self.bundle.manifest.image)
        ids = self._prompter.encode(
            _messages(prompt, image is not None, system), 0 if plan is None else plan.num_tokens
        )
        with self._lock:
            self._turn += 1
            encoded = None if picture is None else self._encode(picture)
            return self._prefill([*ids, *token_ids[:-1]], encoded, len(token_ids))[0]

    def chat(self, image: Source | None = None, system: str | None = None) -> Chat:
        """A conversation about one picture, which is encoded once."""
        return Chat(self, None if image is None else load_picture(image), system)

    # -- the way of a question --------------------------------------------------------------------------------------

    def _stream(self, image: Source | None, messages: list[Message], options: Options) -> Stream:
        started = time.perf_counter()
        _check_options(options)
        picture = None if image is None else load_picture(image)
        sampling = _sampling(options)
        stop = _stop_strings(options)
        max_new_tokens = options.get("max_new_tokens", MAX_NEW_TOKENS)
        if not isinstance(max_new_tokens, Integral):
            raise UsageError(f"max_new_tokens={max_new_tokens!r} is no whole number. Expected at least 1.")
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens={max_new_tokens} is too few. Expected at least 1.")

        settings = self.bundle.manifest.image
        plan = None if picture is None else packing_plan(picture.size_hw, settings)
        num_image_tokens = 0 if plan is None else plan.num_tokens
        ids = self._prompter.encode(messages, num_image_tokens)
        room = self._check_room(len(ids), num_image_tokens)
        speculate = options.get("speculate", True)
        new_tokens = min(max_new_tokens, room)
        return Stream(self, _Request(ids, num_image_tokens, sampling, stop, new_tokens, speculate, picture, started))

    def _check_ids(self, token_ids: Sequence[int], has_image: bool) -> None:
        """Raise `UsageError` for an answer that holds what no token is, or a place for a second picture."""
        manifest = self.bundle.manifest
        vocab_size, image_token_id = manifest.model.vocab_size, manifest.prompt.image_token_id
        for id_ in token_ids:
            if not isinstance(id_, Integral) or not 0 <= id_ < vocab_size:
                raise UsageError(
                    f"The answer's token id {id_!r} is none of this model's. Expected whole numbers from 0 to "
                    f"{vocab_size - 1}; take them from an Answer's token_ids."
                )
            if has_image and id_ == image_token_id:
                raise UsageError(
                    f"The answer's token id {id_} stands for a picture, expected words. Leave it out of the answer."
                )

    def _check_room(self, num_tokens: int, num_image_tokens: int) -> int:
        """How many more tokens the context holds; `ContextError` if none."""
        room = self.backend.max_context - num_tokens
        if room < 1:
            detail = f", {num_image_tokens} of them the picture's" if num_image_tokens else ""
            raise ContextError(
                f"The prompt has {num_tokens} tokens{detail}, the context holds {self.backend.max_context} and needs "
                "room for an answer. Ask less, use a smaller picture, or load with a larger max_context (this bundle "
                f"allows {self.bundle.manifest.max_context})."
            )
        return room

    def _encode(self, picture: Picture) -> _Encoded:
        """The picture's image tokens, kept for the next question about it."""
        tokens = self._memory.image_tokens(picture.digest)
        if tokens is not None:
            return _Encoded(picture.digest, tokens)
        self._memory.make_room()
        settings = self.bundle.manifest.image
        started = time.perf_counter()
        prepare, encode = pixel_path(self.backend, settings)
        pixels = prepare(tile(picture, settings))
        tiled = time.perf_counter()
        features = encode(pixels)
        tokens = self.backend.pack(features, packing_plan(picture.size_hw, settings))
        self._memory.keep_image_tokens(picture.digest, tokens)
        return _Encoded(picture.digest, tokens, tiled - started, time.perf_counter() - tiled)

    def _prefill_opening(self) -> None:
        """Put into the cache what every question begins with: the template's system message, up to the user's words."""
        questions = [self._prompter.encode(_messages(words, False, None), 0) for words in ("a", "b")]
        opening = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*questions, strict=False))]
        if opening and len(opening) < self.backend.max_context:
            self._prefill(opening, None)

    def _prefill(self, ids: list[int], encoded: _Encoded | None, num_logits: int = 1) -> tuple[Array, int]:
        """Bring the cache to `ids`; returns the last logits `[num_logits, vocab]` and how many positions it had."""
        image_token_id = self.bundle.manifest.prompt.image_token_id
        cached = self._memory.prepare(ids, None if encoded is None else encoded.digest, num_logits)
        tokens = None if encoded is None else encoded.tokens
        inputs = PromptInputs(np.array(ids, dtype=np.int64), image_token_id, tokens)
        logits = self.backend.prefill(inputs, cached, num_logits)
        if np.isfinite(logits[..., 0]).all():
            self._memory.sequence.ids = list(ids)
        else:  # nor are the caches; the sampler refuses the logits, and the next question finds nothing cached
            self._memory.forget_sequence()
        return logits, cached

    def _drafter(self, request: _Request) -> Drafter | None:
        """Drafts for an answer, where they may pay: greedy, on a backend that verifies several tokens at once."""
        if not request.speculate or request.sampling.temperature or not isinstance(self.backend, VerifyingBackend):
            return None
        image_token_id = self.bundle.manifest.prompt.image_token_id
        words = (id_ for id_ in request.ids if id_ != image_token_id)
        return Drafter(self._tokenizer, words, self._chances, self._costs)


@dataclass(frozen=True, slots=True)
class _Request:
    """A question, ready to run."""

    ids: list[int]
    num_image_tokens: int
    sampling: SamplingSettings
    stop: tuple[str, ...]
    max_new_tokens: int
    speculate: bool
    picture: Picture | None
    started: float


class Stream:
    """An answer on its way: iterate over its `Piece`s, then read `answer`. `cancel` ends it early.

    A newer question to the same `Varco` ends an unfinished stream.
    """

    def __init__(self, varco: Varco, request: _Request) -> None:
        self._varco = varco
        self._request = request
        generation = varco.bundle.manifest.generation
        self._transcript = Transcript(varco._tokenizer, generation.eos_token_ids, request.stop)
        self._pieces = self._run()
        self._answer: Answer | None = None
        self._drafter: Drafter | None = None
        self._cancelled = False

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def cancel(self) -> None:
        """End the answer after the current token; `answer` then says `cancelled`."""
        self._cancelled = True

    @property
    def answer(self) -> Answer:
        """The whole answer, once the stream has ended. Raises `UsageError` before."""
        if self._answer is None:
            raise UsageError("The answer is not complete yet. Iterate over the stream to its end first.")
        return self._answer

    def run(self) -> Answer:
        """Read the stream to its end and return the answer."""
        for _ in self:
            pass
        return self.answer

    def _run(self) -> Iterator[Piece]:
        varco, request, transcript = self._varco, self._request, self._transcript
        varco._turn += 1
        turn = varco._turn
        generation = varco.bundle.manifest.generation
        with varco._lock:
            encoded = None if request.picture is None else varco._encode(request.picture)
            prefill_started = time.perf_counter()
            logits, num_cached = varco._prefill(request.ids, encoded)
            prefill_s = time.perf_counter() - prefill_started
        sampler = Sampler(request.sampling, generation, request.ids, varco.bundle.manifest.overflow_advice)
        self._drafter = varco._drafter(request)
        tokens = generate_tokens(
            varco.backend,
            logits[-1],
            len(request.ids),
            sampler,
            generation.eos_token_ids,
            request.max_new_tokens,
            varco._memory.sequence.ids.append,
            self._drafter,
        )
        while transcript.finish_reason is None and not self._cancelled:
            with varco._lock:
                if varco._turn != turn:
                    raise UsageError(
                        "A newer question ended this stream. Read a stream to its end before the next question."
                    )
                try:
                    token = next(tokens, None)
                except Exception:
                    varco._memory.forget_sequence()
                    raise
            if token is None:
                break
            piece = transcript.feed(token)
            if piece.text or piece.plain_text or piece.regions:
                yield piece
        last = transcript.finish("cancelled" if self._cancelled else "length")
        self._answer = self._finished(encoded, prefill_s, num_cached)
        if last.text or last.plain_text or last.regions:
            yield last

    def _finished(self, encoded: _Encoded | None, prefill_s: float, num_cached: int) -> Answer:
        request, transcript = self._request, self._transcript
        times = transcript.token_times or [time.perf_counter()]
        steps = len(times) - 1
        parsed = transcript.parsed
        return Answer(
            text=transcript.text,
            plain_text=parsed.plain_text,
            token_ids=tuple(transcript.token_ids),
            regions=parsed.regions,
            warnings=parsed.warnings,
            finish_reason=transcript.finish_reason or "length",
            usage=Usage(len(request.ids), request.num_image_tokens, len(transcript.token_ids), num_cached),
            timings=Timings(
                load_s=self._varco.load_s,
                preprocess_s=0.0 if encoded is None else encoded.preprocess_s,
                vision_s=0.0 if encoded is None else encoded.vision_s,
                prefill_s=prefill_s,
                ttft_s=times[0] - request.started,
                tpot_s=(times[-1] - times[0]) / steps if steps else 0.0,
                total_s=time.perf_counter() - request.started,
                drafted=0 if self._drafter is None else self._drafter.drafted,
                accepted=0 if self._drafter is None else self._drafter.accepted,
            ),
            picture=request.picture,
        )


class Chat:
    """Several turns about one picture. What earlier turns left in the cache is not computed again."""

    def __init__(self, varco: Varco, picture: Picture | None, system: str | None) -> None:
        self._varco = varco
        self._picture = picture
        self._messages: list[Message] = [] if system is None else [Message("system", system)]

    def ask(self, prompt: str, **options: Unpack[Options]) -> Answer:
        """Ask the next question. An error leaves the conversation as it was."""
        if options.get("system") is not None:
            raise UsageError("A conversation's system message is set once. Give it to chat(image, system=...).")
        is_first = not any(message.role == "user" for message in self._messages)
        question = Message("user", prompt, image=is_first and self._picture is not None)
        answer = self._varco._stream(self._picture, [*self._messages, question], options).run()
        self._messages += [question, Message("assistant", answer.text)]
        return answer


def _messages(prompt: str, has_image: bool, system: str | None) -> list[Message]:
    messages = [] if system is None else [Message("system", system)]
    return [*messages, Message("user", prompt, image=has_image)]


def _need_picture(image: Source | None, what: str) -> None:
    """Refuse None, which other libraries return for a picture that they could not read."""
    if image is None:
        raise ImageError(f"{what} looks at a picture, got None. Give a picture, or ask(None, prompt) without one.")


def _check_options(options: Options) -> None:
    """Refuse what is no option: a misspelled one would silently change nothing."""
    known = Options.__annotations__
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"Did you mean {close[0]}?" if close else f"Expected one of: {', '.join(known)}."
            raise UsageError(f"{name} is no option of a question. {hint}")


def _sampling(options: Options) -> SamplingSettings:
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    return SamplingSettings(**{name: options[name] for name in names if name in options})  # type: ignore[literal-required]


def _stop_strings(options: Options) -> tuple[str, ...]:
    stop = options.get("stop", ())
    return (stop,) if isinstance(stop, str) else tuple(stop)
