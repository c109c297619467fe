"""A worker at the other end of a socket, in this process: what it answers, cancels and survives."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.makers.server import DEMO_BUNDLE, until
from tests.makers.supervised import question
from varco_runtime import Varco
from varco_runtime.errors import BackendError
from varco_serve import wire
from varco_serve.codec import ask_header, event_of
from varco_serve.messages import Ask, Begun, Done, Event, Failed, Pixels
from varco_serve.worker.worker import Worker

SECRET = "my-secret-words"


class Place:
    """A worker, and the front's end of its socket."""

    def __init__(self, varco: Varco) -> None:
        self.varco = varco
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(60)
        self.left: list[int] = []
        self.counts: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, args=(theirs,))
        self._thread.start()

    def _run(self, theirs: socket.socket) -> None:
        with theirs, contextlib.suppress(wire.WireError):
            Worker(theirs, self.left.append).serve(self.varco)

    def close(self) -> None:
        self.ours.close()
        self._thread.join()

    def ask(self, id_: int, ask: Ask) -> None:
        header, pixels = ask_header(ask)
        wire.send(self.ours, {"kind": "ask", "id": id_, **header}, *pixels)

    def cancel(self, id_: int) -> None:
        wire.send(self.ours, {"kind": "cancel", "id": id_})

    def next(self) -> tuple[int, Event]:
        header, _ = wire.receive(self.ours)
        self.counts = header.pop("counts", self.counts)
        return header.pop("id"), event_of(header)

    def end(self) -> tuple[int, Done | Failed]:
        while True:
            id_, event = self.next()
            if isinstance(event, Done | Failed):
                return id_, event

    def answer(self, ask: Ask) -> Done | Failed:
        self.ask(99, ask)
        return self.end()[1]


@pytest.fixture(scope="module")
def varco() -> Varco:
    return Varco.load(DEMO_BUNDLE, provider="cpu", threads=1, slots=2)


@pytest.fixture
def place(varco: Varco) -> Iterator[Place]:
    place = Place(varco)
    yield place
    place.close()


def test_a_cancelled_answer_ends_after_the_token_that_is_being_made(place: Place) -> None:
    place.ask(1, question("Hi", ignore_eos=True, max_new_tokens=900))
    assert isinstance(place.next()[1], Begun)
    place.next()
    place.cancel(1)
    id_, done = place.end()
    assert id_ == 1
    assert isinstance(done, Done)
    assert done.document["finish_reason"] == "cancelled"
    assert done.document["usage"]["completion_tokens"] < 900


def test_an_answer_that_was_cancelled_before_it_began_computes_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cancel is read while its prompt is still being encoded."""
    is_cancelled = threading.Event()
    original = place.varco.session.prompt

    def slow(*args: Any, **kwargs: Any) -> Any:
        assert is_cancelled.wait(60)
        return original(*args, **kwargs)

    monkeypatch.setattr(place.varco.session, "prompt", slow)
    place.ask(1, question("Hi", max_new_tokens=900))
    place.cancel(1)
    place.ask(2, question("Hi", temperature=-1.0))  # refused before its prompt
    assert place.end()[0] == 2  # by which the cancel has been read too
    is_cancelled.set()
    done = place.end()[1]
    assert isinstance(done, Done)
    assert done.document["finish_reason"] == "cancelled"
    assert done.document["token_ids"] == []


def test_cancelling_what_nobody_asked_is_no_error(place: Place) -> None:
    place.cancel(12345)
    assert isinstance(place.answer(question("Hi", max_new_tokens=1)), Done)


def broken_once(error: Exception) -> Callable[..., Any]:
    """Fails the first time; afterwards as before."""
    calls: list[int] = []

    def patched(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == 1:
                raise error
            return original(*args, **kwargs)

        return call

    return patched


@pytest.mark.parametrize(
    "error",
    [RuntimeError(SECRET), ValueError(SECRET), BackendError(f"The device says {SECRET}."), MemoryError()],
    ids=repr,
)
def test_whatever_fails_in_an_answer_is_that_answer_s_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    """Whoever asked reads a neutral line; the log says what and where, not the error's text, which may be a prompt."""
    original = place.varco.session.prompter.encode_media
    monkeypatch.setattr(place.varco.session.prompter, "encode_media", broken_once(error)(original))
    failed = place.answer(question("Hi"))
    assert isinstance(failed, Failed)
    assert failed.status == 500
    assert isinstance(place.answer(question("Hi", max_new_tokens=2)), Done)
    assert place.left == []
    logged = capfd.readouterr().err
    assert type(error).__name__ in logged
    assert "session.py" in logged
    for text in (failed.message, logged):
        assert SECRET not in text
        assert "/" not in text
    assert type(error).__name__ not in failed.message


def test_answers_under_way_beside_a_failure_are_whole(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = place.varco.ask(None, "Hi", ignore_eos=True, max_new_tokens=200)
    place.ask(1, question("Hi", ignore_eos=True, max_new_tokens=200))
    assert isinstance(place.next()[1], Begun)
    original = place.varco.session.prompter.encode_media
    monkeypatch.setattr(place.varco.session.prompter, "encode_media", broken_once(RuntimeError())(original))
    place.ask(2, question("What?"))
    ends = dict([place.end(), place.end()])
    assert isinstance(ends[2], Failed)
    assert isinstance(ends[1], Done)
    assert ends[1].document["token_ids"] == list(expected.token_ids)


def test_a_model_that_fails_at_every_question_is_started_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that was lost answers nothing any more, and would be said to be ready for ever."""

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise BackendError("The device was lost.")

    monkeypatch.setattr(place.varco.backend, "prefill", broken)
    assert isinstance(place.answer(question("Something that no slot holds")), Failed)
    until(lambda: place.left == [1])  # the answer's own thread checks the model


def test_where_no_thread_can_be_started_that_question_fails(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        failed = place.answer(question("Hi"))
    assert isinstance(failed, Failed)
    assert (failed.status, failed.code) == (503, "no_threads")
    assert failed.retry_after_s
    assert isinstance(place.answer(question("Hi", max_new_tokens=1)), Done)


def test_pictures_are_counted_as_known_or_new(place: Place) -> None:
    shown = Pixels(30, 20, bytes(range(200)) * 9)
    other = Pixels(20, 30, bytes(range(200)) * 9)
    counts = []
    for pictures in ((shown,), (shown,), (shown, other), ()):
        place.answer(question("What is this?", *pictures, max_new_tokens=1, tiling="one", untrained=True))
        counts.append((place.counts["picture_hits"], place.counts["picture_misses"]))
    assert counts == [(0, 1), (1, 0), (1, 1), (0, 0)]
    assert 0 < place.counts["kv_tokens"] <= place.counts["kv_max_tokens"] == 2 * place.varco.backend.max_context
