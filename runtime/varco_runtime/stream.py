"""An answer on its way: a question becomes a request, the request a stream of pieces, and at its end an `Answer`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from varco_runtime.answer.answer import Answer, Piece, Timings, Usage, shown
from varco_runtime.backend import Progress
from varco_runtime.conversation import Turn
from varco_runtime.engine.job import Job
from varco_runtime.errors import UsageError
from varco_runtime.generation.loop import Decoding
from varco_runtime.generation.sampling import Sampler
from varco_runtime.generation.token_scores import Score
from varco_runtime.generation.transcript import Transcript
from varco_runtime.markup.questions import OCR_PROMPT
from varco_runtime.options import MAX_NEW_TOKENS, AnswerSettings, Options, answer_settings, check_names
from varco_runtime.picture.loading import Picture
from varco_runtime.session import Prompt, Session


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
    _check_bias(settings, session.bundle.manifest.model.vocab_size)
    prompt = session.prompt(conversation, settings.tiling, settings.untrained, settings.long_side)
    room, reads_text = session.room(prompt), conversation[-1].text == OCR_PROMPT
    max_new_tokens = min(settings.max_new_tokens or (room if reads_text else MAX_NEW_TOKENS), room)
    stop_loops = reads_text if settings.stop_loops is None else settings.stop_loops
    return Stream(session, Request(prompt, settings, max_new_tokens, stop_loops, started))


def _check_bias(settings: AnswerSettings, vocab_size: int) -> None:
    for id_, _ in settings.sampling.logit_bias:
        if id_ >= vocab_size:
            raise UsageError(
                f"logit_bias names token {id_}, expected ids of this model, 0 to {vocab_size - 1}. Leave it out."
            )


def _job(session: Session, request: Request) -> Job:
    """Return the engine's job that answers a request. It knows no stream, so that a forgotten one ends its job."""
    ids = request.prompt.ids
    generation, overflow_advice = session.bundle.manifest.generation, session.bundle.manifest.overflow_advice

    def decode(job: Job) -> Decoding:
        assert job.logits is not None, "Bug: an answer begins without its prompt's logits"
        assert job.slot is not None, "Bug: an answer begins without a slot"
        held = session.memory.sequence_in(job.slot)
        settings = request.settings
        sampler = Sampler(settings.sampling, generation, ids, overflow_advice, settings.constraint)
        return Decoding(
            session.backend,
            logits=job.logits[-1],
            position=len(ids),
            sampler=sampler,
            eos_token_ids=() if settings.goes_on_after_eos else generation.eos_token_ids,
            max_new_tokens=request.max_new_tokens,
            on_token=held.ids.append,
            drafter=session.drafter(ids) if settings.may_draft else None,
            drafts_forced=settings.speculate,
        )

    return Job(ids, request.prompt.places, request.prompt.spans, decode)


class Stream:
    """An answer on its way: iterate over its `Piece`s, then read `answer`. `cancel` ends it early.

    Streams of the same `Varco` run side by side, as many as it has slots; a further one waits until another has ended.
    Whoever waits for a piece keeps all of them going. One that nobody refers to any more is cancelled. Threads that
    read one stream share its pieces. `Varco.stream` makes streams.

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
            session.tokenizer,
            eos_token_ids,
            request.settings.stop,
            stop_loops=request.stop_loops,
            ignore_eos=request.settings.goes_on_after_eos,
        )
        self._job = _job(session, request)
        self._reading = threading.Lock()
        self._answer: Answer | None = None
        self._has_failed = False

    def __del__(self) -> None:
        job = getattr(self, "_job", None)
        if job is not None:
            job.cancelled = True  # no lock is taken here: this may run in the midst of anything

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        with self._reading:
            while self._answer is None and not self._has_failed:
                try:
                    piece = self._advance()
                except BaseException:
                    self._has_failed = True
                    raise
                if piece.text or piece.plain_text or piece.regions or piece.tokens:
                    return piece
        raise StopIteration

    def cancel(self) -> None:
        """End the answer after the current token; `answer` then says `cancelled`. Any thread may call it.

        A stream that has not begun never begins.
        """
        self._session.engine.cancel(self._job)

    @property
    def num_prompt_tokens(self) -> int:
        """Return the number of the prompt's tokens, the media's included."""
        return len(self._request.prompt.ids)

    @property
    def num_encoded_media(self) -> int:
        """Return how many pictures and parts of videos were encoded so far: the others' tokens were known."""
        return self._job.vision.num_encoded

    @property
    def token_times(self) -> list[float]:
        """Return when each token of the answer so far came, on the clock of `time.perf_counter`."""
        return list(self._transcript.token_times)

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

    def _advance(self) -> Piece:
        """Return what the next token lets out, or at the end what was held back; sets `answer` then."""
        session, transcript = self._session, self._transcript
        if transcript.finish_reason is None and not self._job.cancelled:
            self._job.progress = self.progress
            token = session.engine.next_token(self._job)
            if token is not None:
                return transcript.feed(token, self._score())
        was_cancelled = self._job.cancelled and transcript.finish_reason is None
        session.engine.cancel(self._job)  # a stop string ended it, or the step was already taken
        last = transcript.finish("cancelled" if was_cancelled else "length")
        self._answer = self._finished()
        return last

    def _score(self) -> Score | None:
        """Return the probability of the token that was read last, where that is asked for."""
        decoding = self._job.decoding
        if self._request.settings.sampling.top_logprobs is None or decoding is None:
            return None
        return decoding.sampler.scores.popleft()

    def _finished(self) -> Answer:
        """Return the whole answer, also of a stream that was cancelled before it began."""
        request, transcript, job = self._request, self._transcript, self._job
        seconds = job.vision
        drafter = None if job.decoding is None else job.decoding.drafter
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
                len(request.prompt.ids), request.prompt.num_media_tokens, len(transcript.token_ids), job.num_cached
            ),
            timings=Timings(
                load_s=self._session.load_s,
                preprocess_s=seconds.preprocess_s,
                vision_s=seconds.vision_s,
                prefill_s=job.prefill_s,
                ttft_s=times[0] - request.started,
                tpot_s=(times[-1] - times[0]) / steps if steps else 0.0,
                total_s=time.perf_counter() - request.started,
                drafted=0 if drafter is None else drafter.drafted,
                accepted=0 if drafter is None else drafter.accepted,
            ),
            media=tuple(shown(medium, self._session.bundle.manifest.image) for medium in request.prompt.media),
            tokens=tuple(transcript.scores),
        )


def _media_notes(prompt: Prompt) -> Iterator[str]:
    """Yield what was odd in the pictures, a sentence each."""
    pictures = [medium.asked for medium in prompt.media if isinstance(medium.asked, Picture)]
    for number, picture in enumerate(pictures, 1):
        if picture.is_animated:
            which = "The picture" if len(pictures) == 1 else f"Picture {number}"
            yield f"{which} is an animation, of which the first frame was looked at; as a video it is seen whole."
