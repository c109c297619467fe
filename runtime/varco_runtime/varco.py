"""What programs call: a loaded bundle that answers questions about pictures.

The way of a question, top down: `Varco` here and `Chat` say what is asked, `start_stream` makes a request of it,
`Stream` runs the request, and `Session` owns the model that they all share.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Unpack

from varco_runtime.answer.answer import Answer
from varco_runtime.backend import Backend, KeepsPrefixes
from varco_runtime.backends.openvino.settings import OpenVinoSettings
from varco_runtime.backends.providers import check_provider, open_provider
from varco_runtime.backends.slots import AUTO, check_slots
from varco_runtime.bundle.manifest import Manifest
from varco_runtime.bundle.opening import Bundle
from varco_runtime.chat import Chat
from varco_runtime.conversation import Asked, Turn, load_media, system_turns, user_turn
from varco_runtime.dtypes import Array
from varco_runtime.engine.scheduler import DEFAULT_MAX_STALL_MS
from varco_runtime.errors import ImageError, UsageError
from varco_runtime.generation.prefix_cache import DEFAULT_MEMORY_MB
from varco_runtime.markup.questions import OCR_PROMPT, ground_prompt, refer_prompt
from varco_runtime.markup.regions import Box
from varco_runtime.options import Options, check_long_side
from varco_runtime.session import Session
from varco_runtime.stream import Stream, start_stream
from varco_runtime.system.processor import usable_cores

THREAD_LIMIT_FLOOR = 64
"""So many threads are allowed on any machine; more only where there are as many cores."""


class Varco:
    """A loaded bundle that answers questions: as many at once as it has slots, each a key/value cache of its own.

    Threads may share it. A question that finds no free slot waits until one is; those that wait come first come first
    served. No answer is made of another question's keys and values.

    ```
    varco = Varco.load("bundle")
    answer = varco.ask("cats.png", "Describe this image.")
    ```

    `Varco.load` makes one. The constructor is for backends of your own.

    Args:
        bundle: An opened bundle.
        backend: The device that the bundle was loaded on.
        load_s: Seconds that loading took, for the timings of every answer.
        provider: What it runs on and why, for people.
        memory_mb: Megabytes for what is kept of earlier pictures, 0 for the latest picture alone.
        max_stall_ms: As for `Varco.load`.
        slots_line: How many answers it takes at once and why, for people; empty where that was asked for.

    Raises:
        BundleError: The bundle's tokenizer or chat template cannot be used.

    Attributes:
        session: The model that all questions share.
        provider: What it runs on and why, for people.
        slots_line: How many answers it takes at once and why, for people; empty where that was asked for.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        load_s: float = 0.0,
        provider: str = "as given",
        memory_mb: int = DEFAULT_MEMORY_MB,
        max_stall_ms: float = DEFAULT_MAX_STALL_MS,
        slots_line: str = "",
    ) -> None:
        self.session = Session(bundle, backend, memory_mb << 20, load_s, max_stall_ms)
        self.provider = provider
        self.slots_line = slots_line

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
        openvino_device: str = "auto",
        precision: str = "auto",
        kv_cache_precision: str = "auto",
        slots: int | str = 1,
        max_stall_ms: float = DEFAULT_MAX_STALL_MS,
    ) -> Varco:
        """Check a bundle, load it and return it, ready to answer.

        Args:
            bundle: The bundle's folder.
            provider: `cpu`, `cuda`, `tensorrt`, `openvino` (for bundles for the CPU), or `auto`, what the bundle was
                exported for.
            max_context: The most tokens of a prompt and its answer, at most the bundle's, which is the default. Less
                saves memory, but not with engines, whose caches have a fixed size.
            threads: Processor threads, by default all.
            verify: `quick` hashes large files once and not again while they stay as they are, `full` always.
            progress: Called with a file's name and a number of bytes, as these are hashed.
            memory_mb: Megabytes for what is kept of earlier pictures (image tokens, keys and values) on the CPU, 0
                for the latest picture alone.
            openvino_device: OpenVINO's device: `CPU`, `GPU` or `NPU`; `auto` is the CPU.
            precision: What OpenVINO computes in: `fp32`, or `auto`, what is fast on the device, often bf16.
            kv_cache_precision: OpenVINO's cache: `u8`, `fp16`, `fp32`; `auto` is fp32 beside `precision="fp32"`, else
                fp16.
            slots: The most answers at once, each with a key/value cache of its own; `auto` for as many as fit in half
                of the free memory, or in the GPU's, at most 8. TensorRT's engines are built for a number of them.
            max_stall_ms: How long answers under way wait at most for a new question's picture and prompt, in
                milliseconds, unless a single tile or the smallest chunk of a prompt takes longer.

        Raises:
            BundleError: The bundle is missing, incomplete, altered or of another format.
            BackendError: The provider, its device or its library is missing or fails.
            UsageError: An argument is out of range.
            MissingExtraError: The provider's packages are not installed.
        """
        started = time.perf_counter()
        check_provider(provider)
        openvino = OpenVinoSettings(openvino_device, precision, kv_cache_precision)
        if provider != "openvino" and openvino != OpenVinoSettings():
            raise UsageError(
                f"openvino_device, precision and kv_cache_precision are for the provider openvino, got {provider!r}. "
                "Load with provider='openvino', or leave them out."
            )
        if verify not in ("quick", "full"):
            raise UsageError(f"verify={verify!r} is unknown. Expected 'quick' or 'full'.")
        for name, number in (("max_context", max_context), ("threads", threads), ("memory_mb", memory_mb)):
            is_default = number is None and name != "memory_mb"
            if not is_default and (not isinstance(number, Integral) or isinstance(number, bool)):
                raise UsageError(f"{name}={number!r} is no whole number. Expected one, or leave it out.")
        if threads is not None and threads < 1:
            raise UsageError(f"threads={threads} is too few. Expected at least 1.")
        # Threads beyond the cores wait for each other: 1,000 on two cores need minutes for what two do in a second.
        most = max(THREAD_LIMIT_FLOOR, os.cpu_count() or 1)
        if threads is not None and threads > most:
            raise UsageError(f"threads={threads} is too many. Expected at most {most}; the cores are {usable_cores()}.")
        check_slots(slots)
        _check_stall(max_stall_ms)
        if memory_mb < 0:
            raise UsageError(f"memory_mb={memory_mb} is too few. Expected 0 (the latest picture alone) or more.")
        opened = Bundle.open(bundle, verify, progress)
        limit = opened.manifest.max_context
        if max_context is not None and not 16 <= max_context <= limit:
            raise UsageError(
                f"max_context={max_context} is out of range. Expected 16 to {limit}, the bundle's maximum."
            )
        with opened.unchanged():
            chosen = open_provider(opened, provider, max_context, threads, slots, openvino)
            varco = cls(
                opened,
                chosen.backend,
                provider=chosen.line,
                memory_mb=memory_mb,
                max_stall_ms=max_stall_ms,
                slots_line=chosen.slots.line if slots == AUTO else "",
            )
        varco.session.prefill_opening()
        varco.session.load_s = time.perf_counter() - started
        return varco

    @property
    def bundle(self) -> Bundle:
        """Return the bundle that was loaded."""
        return self.session.bundle

    @property
    def backend(self) -> Backend:
        """Return the device that the bundle was loaded on."""
        return self.session.backend

    @property
    def kv_bytes_per_token(self) -> int:
        """Return the bytes that keys and values of one position take, in the format that the backend keeps them in."""
        backend = self.backend
        if isinstance(backend, KeepsPrefixes):
            return backend.prefix_bytes_per_position
        return self.bundle.manifest.kv_bytes_per_token

    @property
    def slots(self) -> int:
        """Return how many answers it takes at once."""
        return self.session.memory.num_slots

    @property
    def load_s(self) -> float:
        """Return the seconds that loading took."""
        return self.session.load_s

    def ask(self, image: Asked, prompt: str | None = None, **options: Unpack[Options]) -> Answer:
        """Ask about pictures and videos, or with None about nothing but the prompt, and return the answer.

        ```
        varco.ask([a, b], "Compare.")
        varco.ask(["First:", a, "Second:", b, "Which is larger?"])
        varco.ask(Video("clip.mp4", frames=32), "What happens?")
        ```

        Args:
            image: A path, the bytes of a picture file, an open binary file, a Pillow image or an array uint8
                `[H, W, 3]`; a `Video`; a list of these; or None. Without a prompt: a list of texts, pictures and videos
                in their order, in which a `str` is text and a picture's path a `Path`.
            prompt: The question, behind all pictures and videos.
            **options: How to answer, all off or as the checkpoint says by default. `system`: a system message.
                `max_new_tokens`: 1024, or for `<ocr>` what the context has room for. `long_side`: pixels to which the
                picture's long side is scaled up before it is read, 0 for the picture as it is; for `<ocr>` what the
                bundle says, 0 else. `temperature`: 0 is greedy. `top_k`, `top_p`, `min_p`, `repetition_penalty`,
                `seed`: how to draw. `stop`: strings that end the answer. `speculate`: False turns drafts off; with
                them an answer comes faster, and with float activations it is the same unless two tokens are all but
                equal; a bundle with int8 activations may give another answer, which is as good on average (see
                `generation/speculation.py`). `tiling`: `auto`, as trained: a base tile and a grid for one picture, one
                padded tile for each of several; `grid` or `one` for all. `untrained`: True lets more pictures through
                than the model was trained for. `stop_loops`: whether an answer that repeats one region three times, or
                says nothing new for 200 tokens, ends with a warning and the finish reason `loop`; True for `<ocr>`.
                As servers are asked for them: `presence_penalty` and `frequency_penalty`, -2 to 2, taken from the
                logit of each token that is in the answer, once and for each time, behind the repetition penalty.
                `logit_bias`: token ids and what is added to their logits, -100 to 100, before all penalties.
                `ignore_eos`: True lets the answer go on behind an end token, up to `max_new_tokens`. `top_logprobs`: 0
                to 20 tells each token's probability and that of so many of the likeliest in `Piece.tokens` and
                `Answer.tokens`, by the logits before bias, penalties, constraint and temperature. `constraint`: an
                object that says which token may come next (`generation/constraint.py`), for this answer alone.

        Raises:
            ImageError: A picture cannot be opened, or the bundle does not take so many.
            VideoError: A video cannot be opened, or the bundle takes none.
            PromptError: The prompt cannot be encoded.
            ContextError: The prompt leaves no room for an answer.
            UsageError: An option cannot be honoured. The model stays usable after each of these.
        """
        return self.stream(image, prompt, **options).run()

    def stream(self, image: Asked, prompt: str | None = None, **options: Unpack[Options]) -> Stream:
        """Ask as `ask` does, and return the answer's `Piece`s as they come; the `Stream` has its `answer` at the end.

        Args:
            image: As for `ask`.
            prompt: As for `ask`.
            **options: As for `ask`.

        Raises:
            VarcoError: What `ask` raises, before anything is computed or when a piece is read.
        """
        return start_stream(self.session, lambda: self._turns(image, prompt, options.get("system")), options)

    def _turns(self, image: Asked, prompt: str | None, system: str | None) -> list[Turn]:
        return [*system_turns(system), user_turn(image, prompt, self.bundle.manifest)]

    def ocr(self, image: Asked, **options: Unpack[Options]) -> Answer:
        """Read the text in a picture and return an answer with regions of kind `text`, in the picture as given.

        Args:
            image: As for `ask`, but not None.
            **options: As for `ask`.

        Raises:
            VarcoError: What `ask` raises.
        """
        _need_picture(image, "ocr")
        return self.ask(image, OCR_PROMPT, **options)

    def ground(self, image: Asked, prompt: str, **options: Unpack[Options]) -> Answer:
        """Ask for an answer that locates what it names, and return it with regions of kind `object`.

        Args:
            image: As for `ask`, but not None.
            prompt: The question.
            **options: As for `ask`.

        Raises:
            VarcoError: What `ask` raises.
        """
        _need_picture(image, "ground")
        return self.ask(image, ground_prompt(prompt), **options)

    def refer(
        self,
        image: Asked,
        prompt: str,
        text: str,
        box: Box | tuple[float, float, float, float],
        **options: Unpack[Options],
    ) -> Answer:
        """Ask about a region of a picture and return the answer.

        Args:
            image: As for `ask`, but not None.
            prompt: The question. `{object}` in it becomes `text` with its `box`, which else stand in front of it.
            text: What the region is called.
            box: The region: x1, y1, x2, y2 in 0..1 of the picture's width and height.
            **options: As for `ask`.

        Raises:
            VarcoError: What `ask` raises; `PromptError` also for a box that lies outside 0..1 or covers nothing, and
                for a text that is blank or holds markup.
        """
        _need_picture(image, "refer")
        return self.ask(image, refer_prompt(prompt, text, box), **options)

    def score(
        self,
        image: Asked,
        prompt: str | None,
        token_ids: Sequence[int],
        system: str | None = None,
        tiling: str = "auto",
        untrained: bool = False,
        long_side: int | None = None,
    ) -> Array:
        """Return the logits `[len(token_ids), vocab]` fp32 at each position of a given answer (teacher forcing).

        Row i is what the model would say after the prompt and the answer's first i tokens. To compare precisions.

        Args:
            image: As for `ask`.
            prompt: As for `ask`.
            token_ids: The answer, for example an `Answer`'s `token_ids`; at least one.
            system: A system message, or None for the template's own.
            tiling: As for `ask`.
            untrained: As for `ask`.
            long_side: As for `ask`.

        Raises:
            UsageError: There is no answer, or it holds what no token is.
            ImageError: The picture cannot be opened.
            PromptError: The prompt cannot be encoded.
            ContextError: The prompt and the answer do not fit the context.
        """
        if len(token_ids) == 0:  # an array of them has no truth value
            raise UsageError("There is no answer to score. Give at least one token id.")
        session = self.session
        session.bundle.check_mapped()
        _check_ids(token_ids, session.bundle.manifest, image is not None)
        check_long_side(long_side)
        prompt_ = session.prompt(self._turns(image, prompt, system), tiling, untrained, long_side)
        return session.score(prompt_.followed_by(token_ids[:-1]), len(token_ids))

    def chat(self, image: Asked = None, system: str | None = None, long_side: int | None = None) -> Chat:
        """Return a conversation about pictures and videos, each of which is encoded once for each way it is tiled.

        Args:
            image: As for `ask`.
            system: A system message, or None for the template's own.
            long_side: As for `ask`, for all questions.

        Raises:
            ImageError: The picture cannot be opened.
            UsageError: `long_side` is out of range.
        """
        check_long_side(long_side)
        return Chat(self.session, load_media(image, self.bundle.manifest), system, long_side)


def _check_stall(max_stall_ms: float) -> None:
    is_number = isinstance(max_stall_ms, int | float) and not isinstance(max_stall_ms, bool)
    if not is_number or not 0 <= max_stall_ms < float("inf"):
        raise UsageError(f"max_stall_ms={max_stall_ms!r} is no time. Expected milliseconds from 0.")


def _need_picture(image: Asked, what: str) -> None:
    """Refuse None, which other libraries return for a picture that they could not read."""
    if image is None:
        raise ImageError(f"{what} looks at a picture, got None. Give a picture, or ask(None, prompt) without one.")


def _check_ids(token_ids: Sequence[int], manifest: Manifest, has_image: bool) -> None:
    """Check that an answer holds nothing but tokens, and no place for another picture."""
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
