"""One model, several threads and streams: an answer is the one it would be alone, and the cache is what it claims."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.makers.inputs import close, noise_picture
from tests.makers.threads import in_threads
from varco_runtime import Varco
from varco_runtime.backend import BatchingBackend, KeepsPrefixes, PromptInputs
from varco_runtime.engine.scheduler import Scheduler

NUM_TOKENS = 6
SHARED_PICTURE = noise_picture(3)
QUESTIONS: tuple[tuple[Image.Image | None, str], ...] = (
    (None, "Hello"),
    (SHARED_PICTURE, "What is this?"),
    (None, "Say it again and again and again."),
    (SHARED_PICTURE, "And what color is it?"),
)
Expected = dict[int, tuple[int, ...]]


@pytest.fixture(scope="module", params=[1, 2, 4], ids=lambda slots: f"{slots} slots")
def varco(request: pytest.FixtureRequest, tiny_bundle: Path) -> Varco:
    return Varco.load(tiny_bundle, threads=1, slots=request.param)


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path) -> Expected:
    """Every answer as a model of its own gives it."""
    return {
        i: Varco.load(tiny_bundle, threads=1).ask(*q, max_new_tokens=NUM_TOKENS).token_ids
        for i, q in enumerate(QUESTIONS)
    }


def assert_the_cache_is_what_it_claims(varco: Varco, fresh: Varco) -> None:
    """Keys and values of each slot are those of the sequence that the model believes to be in it."""
    memory = varco.session.memory
    assert isinstance(varco.backend, KeepsPrefixes)
    assert isinstance(varco.backend, BatchingBackend)
    assert isinstance(fresh.backend, KeepsPrefixes)
    image_token_id = varco.bundle.manifest.prompt.image_token_id
    for slot in range(varco.slots):
        sequence = memory.sequence_in(slot)
        ids = list(sequence.ids)
        if not ids:
            continue
        tokens = memory.image_tokens(sequence.spans[0].key) if sequence.spans else None
        fresh.backend.prefill(PromptInputs(np.array(ids), image_token_id, tokens), 0)
        fresh.session.memory.forget_sequence()  # what lies in its cache came by no question
        memory.select(slot)
        assert close(varco.backend.copy_prefix(len(ids)), fresh.backend.copy_prefix(len(ids))), f"slot {slot}"


@contextmanager
def hasty_switches() -> Iterator[None]:
    """Threads take turns as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def in_hasty_threads(work: Callable[[int], None], count: int = 4) -> None:
    """As `in_threads`, with hasty switches."""
    with hasty_switches():
        in_threads(work, count)


def test_answers_to_many_threads_are_those_given_alone(varco: Varco, tiny_bundle: Path, expected: Expected) -> None:
    outcomes: list[tuple[int, tuple[int, ...]]] = []

    def ask(thread: int) -> None:
        for turn in range(12):
            index = (thread + turn) % len(QUESTIONS)
            outcomes.append((index, varco.ask(*QUESTIONS[index], max_new_tokens=NUM_TOKENS).token_ids))

    in_hasty_threads(ask)
    assert len(outcomes) == 48
    assert [(index, got) for index, got in outcomes if got != expected[index]] == []
    assert_the_cache_is_what_it_claims(varco, Varco.load(tiny_bundle, threads=1))


def test_streams_that_one_thread_reads_in_turn_are_those_given_alone(varco: Varco, expected: Expected) -> None:
    """More streams than slots: whoever is read keeps the others going, so that none waits for ever."""
    streams = {index: varco.stream(*question, max_new_tokens=NUM_TOKENS) for index, question in enumerate(QUESTIONS)}
    open_streams = list(streams.values())
    while open_streams:
        open_streams = [stream for stream in open_streams if next(stream, None) is not None]
    assert {index: stream.answer.token_ids for index, stream in streams.items()} == expected


def test_a_picture_asked_about_by_several_threads_is_encoded_once(
    varco: Varco, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, encode, encoded = noise_picture(9), varco.backend.encode, []
    monkeypatch.setattr(varco.backend, "encode", lambda pixels: (encoded.append(len(pixels)), encode(pixels))[1])
    tiles: list[int] = []
    in_hasty_threads(lambda thread: tiles.append(len(varco.ask(new, f"{thread}?", max_new_tokens=2).token_ids)))
    assert len(tiles) == 4
    once = sum(encoded)
    varco.ask(new, "Again?", max_new_tokens=2)
    assert 0 < sum(encoded) == once
    encoded.clear()
    varco.ask(noise_picture(10), "Another?", max_new_tokens=2)
    assert sum(encoded) == once, "pictures of one size have as many tiles"


def test_scores_and_answers_at_once_are_those_given_alone(varco: Varco, tiny_bundle: Path, expected: Expected) -> None:
    fresh = Varco.load(tiny_bundle, threads=1)
    scores = fresh.score(None, "Hello", [5, 6])

    def work(thread: int) -> None:
        for _ in range(4):
            if thread == 0:
                assert close(varco.score(None, "Hello", [5, 6]), scores)
            else:
                assert varco.ask(*QUESTIONS[thread], max_new_tokens=NUM_TOKENS).token_ids == expected[thread]

    in_hasty_threads(work)


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
    assert running.run().token_ids == expected[0]


def test_a_stream_that_waits_for_its_slot_can_be_cancelled_by_another_thread(tiny_bundle: Path) -> None:
    """It wakes at once, though the step that is running meanwhile is a long one."""
    varco = Varco.load(tiny_bundle, threads=1)
    begun, go_on = threading.Event(), threading.Event()
    prefill = varco.backend.prefill

    def slow(inputs: PromptInputs, start: int, num_logits: int = 1) -> np.ndarray:
        begun.set()
        assert go_on.wait(60)
        return prefill(inputs, start, num_logits)

    varco.backend.prefill = slow  # type: ignore[method-assign]
    first = threading.Thread(target=varco.ask, args=(None, "Hello"), kwargs={"max_new_tokens": 2})
    first.start()
    assert begun.wait(60)
    waiting = varco.stream(None, "And?", max_new_tokens=2)
    reader = threading.Thread(target=waiting.run)
    reader.start()
    waiting.cancel()
    reader.join(60)
    assert not reader.is_alive()
    assert waiting.answer.finish_reason == "cancelled"
    go_on.set()
    first.join(60)


@pytest.mark.parametrize("where", ["decode", "prefill", "encode", "choice"])
def test_an_interrupt_in_the_midst_of_a_step_leaves_the_other_answers_whole(
    varco: Varco, expected: Expected, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes to the thread that runs the step for everybody; the others are answered by another one's steps."""
    other, interrupted = (varco.stream(*QUESTIONS[index], max_new_tokens=NUM_TOKENS) for index in (0, 1))
    next(other)
    place = {"decode": "decode_steps", "prefill": "prefill", "encode": "encode", "choice": "decode_rows"}[where]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "choice":
            patch.setattr("varco_runtime.engine.job.Job.deliver", interrupt)
        else:
            patch.setattr(varco.backend, place, interrupt)
            patch.setattr(varco.backend, "decode_rows", interrupt)
            if where != "decode":  # a slot may hold the picture already, and steps alone would not be interrupted
                patch.setattr("varco_runtime.engine.costs.RowCosts.go_together", lambda *_: True)
            varco.session.memory._kept.clear()
            varco.session.memory._latest.clear()
        with pytest.raises(KeyboardInterrupt):
            interrupted.run()
    assert list(interrupted) == []
    assert varco.ask(*QUESTIONS[2], max_new_tokens=NUM_TOKENS).token_ids == expected[2]
    assert varco.session.engine._driver is None


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.full)])
def test_every_interrupt_leaves_the_engine_usable(tiny_bundle: Path, expected: Expected, stride: int) -> None:
    """Raised at every seventh line, or at every single one, of the engine and of what it remembers."""
    varco = Varco.load(tiny_bundle, threads=1, slots=2)
    num_lines = 0
    while True:
        unread = varco.stream(*QUESTIONS[0], max_new_tokens=3)
        next(unread)
        if not interrupt_at_line(num_lines, lambda: varco.ask(*QUESTIONS[2], max_new_tokens=3)):
            break
        num_lines += stride
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Scheduler, "step", bounded(Scheduler.step))
            assert varco.ask(*QUESTIONS[2], max_new_tokens=3).token_ids == expected[2][:3], f"line {num_lines}"
            unread.cancel()
            assert varco.ask(None, "x", max_new_tokens=1).token_ids
    assert num_lines > 100


def bounded(step: Callable[[Scheduler], None]) -> Callable[[Scheduler], None]:
    """A step of which a hundred are too many: an engine that waits for nothing fails instead of going on for ever."""
    left = iter(range(100))

    def counted(self: Scheduler) -> None:
        assert next(left, None) is not None, "the engine goes round in circles"
        step(self)

    return counted


def interrupt_at_line(number: int, work: Callable[[], object]) -> bool:
    """Run `work` with a KeyboardInterrupt at the so manieth of those lines, and return whether there was one."""
    seen = 0

    def trace(frame: object, event: str, _: object) -> object:
        nonlocal seen
        path = frame.f_code.co_filename.replace("\\", "/")  # type: ignore[attr-defined]
        if "varco_runtime/engine" not in path and not path.endswith("generation/prefix_cache.py"):
            return None
        if event == "line":
            seen += 1
            if seen == number + 1:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_threads_that_read_one_stream_share_its_pieces(varco: Varco) -> None:
    text = varco.ask(None, "Hello", max_new_tokens=48).text
    stream = varco.stream(None, "Hello", max_new_tokens=48)
    pieces: list[str] = []
    in_hasty_threads(lambda _: pieces.extend(piece.text for piece in stream))
    assert stream.answer.text == text
    assert sorted("".join(pieces)) == sorted(text)


def test_a_conversation_of_many_threads_is_one_question_after_the_other(varco: Varco) -> None:
    chat = varco.chat(None)
    answers: dict[str, str] = {}

    def ask(thread: int) -> None:
        prompt = f"Question {thread}?"
        answers[prompt] = chat.ask(prompt, max_new_tokens=4).text

    in_hasty_threads(ask)
    messages = [turn.message for turn in chat._turns]
    assert [message.role for message in messages] == ["user", "assistant"] * 4
    assert {q.texts[0]: a.texts[0] for q, a in zip(messages[::2], messages[1::2], strict=True)} == answers
    again = varco.chat(None)
    for question, answer in zip(messages[::2], messages[1::2], strict=True):
        assert again.ask(question.texts[0], max_new_tokens=4).text == answer.texts[0]
