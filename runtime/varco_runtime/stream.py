"""An answer on its way: a question becomes a request, the request a stream of pieces, and at its end an `Answer`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from varco_runtime.answer.answer import Answer, Piece, Timings, Usage, shown
from varco_runtime.backend import Progress, reporting
from varco_runtime.conversation import Turn
from varco_runtime.errors import UsageError
from varco_runtime.generation.loop import Decoding, generate_tokens
from varco_runtime.generation.sampling import Sampler
from varco_runtime.generation.speculation import Drafter
from varco_runtime.generation.transcript import Transcript
from varco_runtime.markup.questions import OCR_PROMPT
from varco_runtime.media_encoder import VisionTimes
from varco_runtime.options import MAX_NEW_TOKENS, AnswerSettings, Options, answer_settings, check_names
from varco_runtime.picture.loading import Picture
from varco_runtime.session import Prefilled, Prompt, Session


@dataclass(frozen=True, slots=True)
class Request:
    """A question that is ready to run.

    Args:
        prompt: The conversation, as token ids and media.
        settings: How to answer.
        max_new_tokens: The most tokens of the answer: what the settings say, or what the context has room for.
        stop_loops: Whether an answer that goes round in a circle is ended.
        started: When the question was asked, on the clock of `time.perf_counter`.
    """

    prompt: Prompt
    settings: AnswerSettings
    max_new_tokens: int
    stop_loops: bool
    started: float


def start_stream(session: Session, turns: Callable[[], Sequence[Turn]], options: Options) -> Stream:
    """Return the stream that answers a conversation. Nothing is computed before its first piece is asked for.

    Args:
        session: The model that answers.
        turns: Loads the conversation's turns, the oldest first; called once the options' names are checked.
        options: How to answer.

    Raises:
        UsageError: An option is unknown or out of range.
        ImageError: A picture or video cannot be opened, or the bundle does not take it.
        PromptError: The messages cannot be encoded.
        ContextError: They leave no room for an answer.
    """
    started = time.perf_counter()
    session.bundle.check_mapped()
    check_names(options)
    conversation = turns()
    settings = answer_settings(options)
    prompt = session.prompt(conversation, settings.tiling, settings.untrained, settings.long_side)
    room, reads_text = session.room(prompt), conversation[-1].text == OCR_PROMPT
    max_new_tokens = min(settings.max_new_tokens or (room if reads_text else MAX_NEW_TOKENS), room)
    stop_loops = reads_text if settings.stop_loops is None else settings.stop_loops
    return Stream(session, Request(prompt, settings, max_new_tokens, stop_loops, started))


@dataclass(frozen=True, slots=True)
class _Running:
    """An answer whose prompt is in the cache: `tokens` computes the next token when it is asked for one."""

    prefilled: Prefilled
    drafter: Drafter | None
    tokens: Iterator[int]


class Stream:
    """An answer on its way: iterate over its `Piece`s, then read `answer`. `cancel` ends it early.

    A newer question to the same `Varco` ends an unfinished stream. Threads that read one stream share its pieces.
    `Varco.stream` makes streams.

    Args:
        session: The model that answers.
        request: The question.

    Attributes:
        progress: If it is set before the first piece is read, called while the media and the prompt are read, where
            the backend can tell how far it is.
    """

    progress: Progress | None = None

    def __init__(self, session: Session, request: Request) -> None:
        self._session = session
        self._request = request
        eos_token_ids = session.bundle.manifest.generation.eos_token_ids
        self._transcript = Transcript(
            session.tokenizer, eos_token_ids, request.settings.stop, stop_loops=request.stop_loops
        )
        self._pieces = self._run()
        self._reading = threading.Lock()
        self._answer: Answer | None = None
        self._cancelled = False

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        with self._reading:  # a generator refuses a second thread with an error of Python's
            return next(self._pieces)

    def cancel(self) -> None:
        """End the answer after the current token; `answer` then says `cancelled`. Any thread may call it.

        A stream that has not begun never begins, and does not end another one.
        """
        self._cancelled = True

    @property
    def num_prompt_tokens(self) -> int:
        """Return the number of the prompt's tokens, the media's included."""
        return len(self._request.prompt.ids)

    @property
    def answer(self) -> Answer:
        """Return the whole answer, once the stream has ended.

        Raises:
            UsageError: It has not.
        """
        if self._answer is None:
            raise UsageError("The answer is not complete yet. Iterate over the stream to its end first.")
        return self._answer

    def run(self) -> Answer:
        """Read the stream to its end and return the answer."""
        for _ in self:
            pass
        return self.answer

    def _run(self) -> Iterator[Piece]:
        session, transcript = self._session, self._transcript
        running: _Running | None = None
        while transcript.finish_reason is None and not self._cancelled:
            with session.lock:
                if self._cancelled:  # while it waited for the lock
                    break
                if running is None:
                    with reporting(session.backend, self.progress):
                        running = self._begin()
                token = session.next_token(running.prefilled, running.tokens)
            if token is None:
                break
            piece = transcript.feed(token)
            if piece.text or piece.plain_text or piece.regions:
                yield piece
        last = transcript.finish("cancelled" if self._cancelled else "length")
        self._answer = self._finished(running)
        if last.text or last.plain_text or last.regions:
            yield last

    def _begin(self) -> _Running:
        """Put the prompt into the cache. The caller holds the session's lock."""
        session, request = self._session, self._request
        ids = request.prompt.ids
        prefilled = session.prefill(request.prompt)
        generation = session.bundle.manifest.generation
        drafter = session.drafter(ids) if request.settings.may_draft else None
        decoding = Decoding(
            session.backend,
            logits=prefilled.logits[-1],
            position=len(ids),
            sampler=Sampler(request.settings.sampling, generation, ids, session.bundle.manifest.overflow_advice),
            eos_token_ids=generation.eos_token_ids,
            max_new_tokens=request.max_new_tokens,
            on_token=session.count_token,
            drafter=drafter,
        )
        return _Running(prefilled, drafter, generate_tokens(decoding))

    def _finished(self, running: _Running | None) -> Answer:
        """Return the whole answer; `running` is None for a stream that was cancelled before it began."""
        request, transcript = self._request, self._transcript
        prefilled = None if running is None else running.prefilled
        seconds = VisionTimes() if prefilled is None else prefilled.times
        drafter = None if running is None else running.drafter
        num_cached = 0 if prefilled is None else prefilled.num_cached
        times = transcript.token_times or [time.perf_counter()]
        steps = len(times) - 1
        parsed = transcript.parsed
        return Answer(
            text=transcript.text,
            plain_text=parsed.plain_text,
            token_ids=tuple(transcript.token_ids),
            regions=parsed.regions,
            warnings=(*_media_notes(request.prompt), *parsed.warnings),
            finish_reason=transcript.finish_reason or "length",
            usage=Usage(
                len(request.prompt.ids), request.prompt.num_media_tokens, len(transcript.token_ids), num_cached
            ),
            timings=Timings(
                load_s=self._session.load_s,
                preprocess_s=seconds.preprocess_s,
                vision_s=seconds.vision_s,
                prefill_s=0.0 if prefilled is None else prefilled.prefill_s,
                ttft_s=times[0] - request.started,
                tpot_s=(times[-1] - times[0]) / steps if steps else 0.0,
                total_s=time.perf_counter() - request.started,
                drafted=0 if drafter is None else drafter.drafted,
                accepted=0 if drafter is None else drafter.accepted,
            ),
            media=tuple(shown(medium, self._session.bundle.manifest.image) for medium in request.prompt.media),
        )


def _media_notes(prompt: Prompt) -> Iterator[str]:
    """Yield what was odd in the pictures, a sentence each."""
    pictures = [medium.asked for medium in prompt.media if isinstance(medium.asked, Picture)]
    for number, picture in enumerate(pictures, 1):
        if picture.is_animated:
            which = "The picture" if len(pictures) == 1 else f"Picture {number}"
            yield f"{which} is an animation, of which the first frame was looked at; as a video it is seen whole."
