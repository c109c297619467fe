"""One model, several threads: an answer is the one it would be alone or is refused, and the cache is what it claims."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest
from PIL import Image

from tests.makers.inputs import close, noise_picture
from varco_runtime import Varco
from varco_runtime.backend import KeepsPrefixes, PromptInputs
from varco_runtime.errors import UsageError
from varco_runtime.stream import Stream

NUM_TOKENS = 4
ENDED = "A newer question ended this stream. Read a stream to its end before the next question."
SHARED_PICTURE = noise_picture(3)
QUESTIONS: tuple[tuple[Image.Image | None, str], ...] = (
    (None, "Hello"),
    (SHARED_PICTURE, "What is this?"),
    (None, "Say it again and again and again."),
    (SHARED_PICTURE, "And what color is it?"),
)
Expected = dict[int, tuple[int, ...]]


@pytest.fixture(scope="module")
def loaded(tiny_bundle: Path) -> Varco:
    return Varco.load(tiny_bundle, threads=1)


@pytest.fixture
def varco(loaded: Varco) -> Iterator[Varco]:
    """A model whose lock and backend are its own again after each test."""
    lock = loaded.session.lock
    yield loaded
    loaded.session.lock = lock


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path) -> Expected:
    """Every answer as a model of its own gives it."""
    return {
        i: Varco.load(tiny_bundle, threads=1).ask(*q, max_new_tokens=NUM_TOKENS).token_ids
        for i, q in enumerate(QUESTIONS)
    }


def assert_the_cache_is_what_it_claims(varco: Varco, fresh: Varco) -> None:
    """Keys and values are those of the sequence that the model believes to be in its cache."""
    sequence = varco.session.memory.sequence
    ids = list(sequence.ids)
    if not ids:
        return
    assert isinstance(varco.backend, KeepsPrefixes)
    assert isinstance(fresh.backend, KeepsPrefixes)
    image_token_id = varco.bundle.manifest.prompt.image_token_id
    tokens = varco.session.memory.image_tokens(sequence.spans[0].key) if sequence.spans else None
    fresh.backend.prefill(PromptInputs(np.array(ids), image_token_id, tokens), 0)
    fresh.session.memory.forget_sequence()  # what lies in its cache came by no question
    assert close(varco.backend.copy_prefix(len(ids)), fresh.backend.copy_prefix(len(ids)))


class Door:
    """A model's lock, at whose `num`-th use the first stream meets another one: just before it comes in, or after it
    has gone out. What happens there happens in this thread, as if another had been faster."""

    def __init__(self, lock: threading.Lock, num: int, meets: Callable[[], None], after: bool) -> None:
        self._lock, self._num, self._meets, self._after = lock, num, meets, after
        self._busy = False

    def __enter__(self) -> None:
        self._meet(after=False)
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
        self._meet(after=True)

    def _meet(self, after: bool) -> None:
        if self._busy or after is not self._after:
            return
        self._num -= 1
        if self._num == 0:
            self._busy = True
            self._meets()
            self._busy = False


def read(stream: Stream) -> tuple[int, ...] | str:
    """The tokens of a stream, or with what it was refused."""
    try:
        return stream.run().token_ids
    except UsageError as error:
        return str(error)


def meet(how: str, varco: Varco, other: Stream, expected: tuple[int, ...], scores: np.ndarray) -> None:
    """What another thread may do meanwhile."""
    if how == "begins":
        next(other)
    elif how == "answers":
        assert other.run().token_ids == expected
    elif how == "scores":
        assert close(varco.score(None, "Hello", [5, 6]), scores)
    else:
        other.cancel()
        assert other.run().token_ids == ()


@pytest.mark.parametrize("after", [False, True], ids=["before the lock", "behind it"])
@pytest.mark.parametrize("how", ["begins", "answers", "scores", "is cancelled"])
def test_a_stream_that_meets_another_at_any_use_of_the_lock_is_right_or_refused(
    varco: Varco, tiny_bundle: Path, expected: Expected, how: str, after: bool
) -> None:
    fresh, lock = Varco.load(tiny_bundle, threads=1), varco.session.lock
    scores = fresh.score(None, "Hello", [5, 6])
    outcomes = set()
    for num in range(1, NUM_TOKENS + 2):  # the last use finds that no token is left
        varco.ask(None, "Something else", max_new_tokens=1)  # so that neither question is in the cache already
        first, other = (varco.stream(*QUESTIONS[i], max_new_tokens=NUM_TOKENS) for i in (1, 2))
        meeting = functools.partial(meet, how, varco, other, expected[2], scores)
        varco.session.lock = Door(lock, num, meeting, after)  # type: ignore[assignment]
        got = read(first)
        varco.session.lock = lock
        outcomes.add(got)
        assert got in (expected[1], ENDED), f"use {num} of the lock"
        if how == "begins":
            assert read(other) in (expected[2], ENDED), f"use {num} of the lock"
        assert_the_cache_is_what_it_claims(varco, fresh)
        assert varco.ask(*QUESTIONS[2], max_new_tokens=NUM_TOKENS).token_ids == expected[2]
    assert outcomes == ({expected[1]} if how == "is cancelled" else {expected[1], ENDED})


def test_the_one_that_comes_second_to_the_lock_is_the_newer_question(varco: Varco, expected: Expected) -> None:
    """The fault of a turn taken before the lock: the newer stream went on with the older one's keys and values."""
    older, newer = (varco.stream(*QUESTIONS[i], max_new_tokens=NUM_TOKENS) for i in (1, 2))
    lock = varco.session.lock
    varco.session.lock = Door(lock, 1, lambda: (next(newer), None)[1], after=False)  # type: ignore[assignment]
    got = read(older)
    varco.session.lock = lock
    assert got == expected[1]
    assert read(newer) == ENDED


def test_a_stream_cancelled_before_it_begins_does_no_work_and_ends_no_other(varco: Varco, expected: Expected) -> None:
    running = varco.stream(*QUESTIONS[0], max_new_tokens=NUM_TOKENS)
    next(running)
    never = varco.stream(*QUESTIONS[1], max_new_tokens=NUM_TOKENS)
    never.cancel()
    assert list(never) == []
    assert (never.answer.finish_reason, never.answer.token_ids, never.answer.timings.prefill_s) == (
        "cancelled",
        (),
        0.0,
    )
    assert read(running) == expected[0]


@contextmanager
def hasty_switches() -> Iterator[None]:
    """Threads take turns as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def in_threads(work: Callable[[int], None], count: int = 4) -> None:
    """Run `work(0)` to `work(count - 1)` at once, and raise what any of them raised."""
    errors: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    with hasty_switches():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def test_streams_of_many_threads_are_right_or_refused(varco: Varco, tiny_bundle: Path, expected: Expected) -> None:
    outcomes: list[tuple[int, tuple[int, ...] | str]] = []

    def ask(thread: int) -> None:
        for turn in range(12):
            index = (thread + turn) % len(QUESTIONS)
            outcomes.append((index, read(varco.stream(*QUESTIONS[index], max_new_tokens=NUM_TOKENS))))

    in_threads(ask)
    assert len(outcomes) == 48
    wrong = [(index, got) for index, got in outcomes if got not in (expected[index], ENDED)]
    assert not wrong
    assert_the_cache_is_what_it_claims(varco, Varco.load(tiny_bundle, threads=1))
    for index, question in enumerate(QUESTIONS):
        assert varco.ask(*question, max_new_tokens=NUM_TOKENS).token_ids == expected[index]


def test_threads_that_read_one_stream_share_its_pieces(varco: Varco) -> None:
    text = varco.ask(None, "Hello", max_new_tokens=48).text
    stream = varco.stream(None, "Hello", max_new_tokens=48)
    pieces: list[str] = []
    in_threads(lambda _: pieces.extend(piece.text for piece in stream))
    assert stream.answer.text == text
    assert sorted("".join(pieces)) == sorted(text)


def test_a_conversation_of_many_threads_is_one_question_after_the_other(varco: Varco) -> None:
    chat = varco.chat(None)
    answers: dict[str, str] = {}

    def ask(thread: int) -> None:
        prompt = f"Question {thread}?"
        answers[prompt] = chat.ask(prompt, max_new_tokens=4).text

    in_threads(ask)
    messages = [turn.message for turn in chat._turns]
    assert [message.role for message in messages] == ["user", "assistant"] * 4
    assert {q.texts[0]: a.texts[0] for q, a in zip(messages[::2], messages[1::2], strict=True)} == answers
    again = varco.chat(None)
    for question, answer in zip(messages[::2], messages[1::2], strict=True):
        assert again.ask(question.texts[0], max_new_tokens=4).text == answer.texts[0]
