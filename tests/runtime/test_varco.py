"""The runtime on a tiny bundle: cache, streaming, stopping, cancelling, errors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.makers.inputs import noise_picture
from varco_runtime import Varco
from varco_runtime.backends.cpu.backend import OnnxRuntimeBackend
from varco_runtime.errors import ContextError, ImageError, PromptError, UsageError, VarcoError


@pytest.fixture(scope="module")
def varco(tiny_bundle: Path) -> Varco:
    return Varco.load(tiny_bundle, threads=1)


@pytest.fixture
def image() -> Image.Image:
    return noise_picture()


def test_the_same_question_twice_gives_the_same_answer(varco: Varco, image: Image.Image) -> None:
    first = varco.ask(image, "What is this?", max_new_tokens=24)
    assert varco.ask(image, "What is this?", max_new_tokens=24).token_ids == first.token_ids


def test_streamed_pieces_join_to_the_answer(varco: Varco, image: Image.Image) -> None:
    stream = varco.stream(image, "<ocr>", max_new_tokens=48)
    pieces = list(stream)
    answer = stream.answer
    assert "".join(piece.text for piece in pieces) == answer.text
    assert "".join(piece.plain_text for piece in pieces) == answer.plain_text
    assert tuple(region for piece in pieces for region in piece.regions) == answer.regions
    assert answer.text == varco.ask(image, "<ocr>", max_new_tokens=48).text


def test_an_answer_before_its_end_is_refused(varco: Varco) -> None:
    stream = varco.stream(None, "Hello", max_new_tokens=8)
    next(stream)
    with pytest.raises(UsageError, match="not complete"):
        _ = stream.answer


def test_a_cancelled_stream_keeps_what_it_said(varco: Varco) -> None:
    stream = varco.stream(None, "Hello", max_new_tokens=64)
    said = next(stream).text
    stream.cancel()
    said += "".join(piece.text for piece in stream)
    assert stream.answer.finish_reason == "cancelled"
    assert stream.answer.text == said


def test_a_stream_that_nobody_reads_on_is_whole_when_the_next_question_is_answered(
    varco: Varco, image: Image.Image
) -> None:
    """With one slot, the question waits for the stream, and its thread keeps the stream going meanwhile."""
    questions = ("What is this?", "Something else entirely?")
    expected = [varco.ask(image, question, max_new_tokens=12).token_ids for question in questions]
    unread = varco.stream(image, questions[1], max_new_tokens=12)
    next(unread)
    assert varco.ask(image, questions[0], max_new_tokens=12).token_ids == expected[0]
    assert unread.run().token_ids == expected[1]


def test_a_stream_that_nobody_refers_to_any_more_costs_the_next_question_nothing(
    varco: Varco, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No collection is needed: a stream is in no cycle of references."""
    varco.ask(None, "Hello", max_new_tokens=4)
    next(varco.stream(None, "Something else entirely?", max_new_tokens=64))
    steps: list[int] = []
    step = varco.backend.decode_steps  # type: ignore[attr-defined]
    monkeypatch.setattr(varco.backend, "decode_steps", lambda ids, at: (steps.append(at), step(ids, at))[1])
    varco.ask(None, "Hello", max_new_tokens=4, repetition_penalty=1.0)
    assert len(steps) <= 3


def test_a_stop_string_ends_the_answer_before_it(varco: Varco) -> None:
    whole = varco.ask(None, "Hello", max_new_tokens=32).text
    stop = whole[6:9]
    answer = varco.ask(None, "Hello", max_new_tokens=32, stop=stop)
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop_string"


def test_max_new_tokens_ends_the_answer(varco: Varco) -> None:
    answer = varco.ask(None, "Hello", max_new_tokens=5)
    assert (len(answer.token_ids), answer.finish_reason) == (5, "length")


def test_an_end_token_ends_the_answer_and_is_not_in_its_text(varco: Varco, monkeypatch: pytest.MonkeyPatch) -> None:
    eos = varco.bundle.manifest.generation.eos_token_ids[0]
    step = varco.backend.decode_step

    def ends_after_three(token_id: int, position: int) -> np.ndarray:
        logits = step(token_id, position).copy()
        ends_after_three.calls += 1  # type: ignore[attr-defined]
        if ends_after_three.calls == 3:  # type: ignore[attr-defined]
            logits[eos] = 1e9
        return logits

    ends_after_three.calls = 0  # type: ignore[attr-defined]
    expected = varco.ask(None, "Hello", max_new_tokens=3).text
    monkeypatch.setattr(varco.backend, "decode_step", ends_after_three)
    answer = varco.ask(None, "Hello", max_new_tokens=32, speculate=False)
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] == eos
    assert answer.text == expected


def test_a_seed_makes_sampling_repeatable(varco: Varco) -> None:
    first = varco.ask(None, "Hello", max_new_tokens=16, temperature=1.5, seed=3)
    assert varco.ask(None, "Hello", max_new_tokens=16, temperature=1.5, seed=3).token_ids == first.token_ids
    assert varco.ask(None, "Hello", max_new_tokens=16, temperature=1.5, seed=4).token_ids != first.token_ids


def test_a_prompt_longer_than_the_context_is_one_clear_line(tiny_bundle: Path) -> None:
    varco = Varco.load(tiny_bundle, max_context=64, threads=1)
    with pytest.raises(ContextError, match=r"The prompt has \d+ tokens, the context holds 64") as caught:
        varco.ask(None, "word " * 100)
    assert "\n" not in str(caught.value)
    assert varco.ask(None, "Hello", max_new_tokens=3).token_ids


def test_an_error_in_the_middle_leaves_the_model_usable(tiny_bundle: Path, image: Image.Image) -> None:
    varco = Varco.load(tiny_bundle, threads=1)
    expected = varco.ask(image, "What is this?", max_new_tokens=8).token_ids
    step = varco.backend.decode_step

    def failing(token_id: int, position: int) -> np.ndarray:
        raise RuntimeError("boom")

    varco.backend.decode_step = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="boom"):
        varco.ask(image, "Another?", max_new_tokens=8, speculate=False)
    varco.backend.decode_step = step  # type: ignore[method-assign]
    assert varco.ask(image, "What is this?", max_new_tokens=8).token_ids == expected


def test_a_box_outside_the_picture_is_refused(varco: Varco, image: Image.Image) -> None:
    with pytest.raises(PromptError, match="box"):
        varco.refer(image, "{object}?", text="this", box=(0.1, 0.2, 1.3, 0.4))


def test_a_failed_turn_leaves_a_conversation_as_it_was(varco: Varco, image: Image.Image) -> None:
    chat = varco.chat(image)
    with pytest.raises(ContextError):
        chat.ask("word " * 20000)
    first = chat.ask("What is this?", max_new_tokens=8)
    assert first.token_ids == varco.ask(image, "What is this?", max_new_tokens=8).token_ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"provider": "gpu"}, "provider 'gpu' is unknown"),
        ({"verify": "maybe"}, "verify='maybe' is unknown"),
        ({"threads": 0}, "threads=0"),
        ({"threads": 100_000}, "threads=100000 is too many"),
        ({"max_context": 5}, "max_context=5 is out of range"),
        ({"max_context": "4096"}, "max_context='4096' is no whole number"),
        ({"threads": 1.5}, "threads=1.5 is no whole number"),
        ({"memory_mb": None}, "memory_mb=None is no whole number"),
        ({"max_context": 10**9}, "max_context=1000000000 is out of range"),
    ],
)
def test_wrong_arguments_are_one_clear_line(tiny_bundle: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Varco.load(tiny_bundle, **arguments)  # type: ignore[arg-type]


def test_tab_completion_offers_the_names_that_are_imported_late() -> None:
    code = "import varco_runtime as v; print(set(v.__all__) <= set(dir(v)), 'PIL' in __import__('sys').modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_no_tokens_asked_for_is_refused(varco: Varco) -> None:
    with pytest.raises(UsageError, match="max_new_tokens=0"):
        varco.ask(None, "Hello", max_new_tokens=0)


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ("Hello", {"max_tokens": 5}, UsageError, "max_tokens is no option of a question. Did you mean max_new_tokens?"),
        ("Hello", {"beams": 5}, UsageError, "beams is no option of a question. Expected one of: system, "),
        ("Hello", {"max_new_tokens": 2.5}, UsageError, "max_new_tokens=2.5 is no whole number"),
        ("Hello", {"stop": 5}, UsageError, "stop=5 is no text. Expected a string, a list of strings, or None."),
        ("Hello", {"stop": [None]}, UsageError, "stop=[None] is no text"),
        ("Hello", {"stop": b"x"}, UsageError, "stop=b'x' is no text"),
        ("Hello", {"system": 3}, PromptError, "The text is of type int, expected a string"),
        (None, {}, PromptError, "No prompt was given. Expected a text behind the picture"),
    ],
)
def test_what_is_no_question_is_one_clear_line(
    varco: Varco, prompt: Any, options: dict[str, Any], error: type[VarcoError], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        varco.ask(None, prompt, **options)


def test_no_stop_strings_may_be_spelled_none(varco: Varco) -> None:
    assert varco.ask(None, "Hello", max_new_tokens=2, stop=None).token_ids


def test_a_task_about_a_picture_needs_one(varco: Varco) -> None:
    """None is what other libraries return for a picture that they could not read."""
    missing: Any = None
    for ask in (
        lambda: varco.ocr(missing),
        lambda: varco.ground(missing, "What is where?"),
        lambda: varco.refer(missing, "What is {object}?", "this", (0, 0, 1, 1)),
    ):
        with pytest.raises(ImageError, match="looks at a picture, got None"):
            ask()


@pytest.mark.parametrize("token_ids", [[10**9, 1], [-1], [1.5], ["1"]])
def test_scoring_takes_the_models_tokens_alone(varco: Varco, token_ids: Any) -> None:
    with pytest.raises(UsageError, match="none of this model's"):
        varco.score(None, "Hello", token_ids)


def test_scoring_takes_an_array_and_no_second_picture(varco: Varco, image: Image.Image) -> None:
    np.testing.assert_array_equal(varco.score(None, "Hi", np.array([5, 6])), varco.score(None, "Hi", [5, 6]))
    with pytest.raises(UsageError, match="stands for a picture"):
        varco.score(image, "Hello", [varco.bundle.manifest.prompt.image_token_id, 5])


def test_the_step_reuses_its_buffers(varco: Varco) -> None:
    assert isinstance(varco.backend, OnnxRuntimeBackend)
    first = varco.backend.decode_step(5, 0)
    assert varco.backend.decode_step(6, 1).base is first.base


def test_a_stream_tells_how_far_the_picture_and_the_prompt_are(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("varco_runtime.backends.cpu.backend.CHUNK_TOKENS", 100)
    varco = Varco.load(tiny_bundle, threads=1)
    told: list[tuple[str, int, int]] = []
    stream = varco.stream(Image.new("RGB", (90, 60)), "hi", max_new_tokens=2)
    stream.progress = lambda *facts: told.append(facts)
    usage = stream.run().usage
    tiles = [facts for facts in told if facts[0] == "tiles"]
    assert tiles == [("tiles", done, len(tiles)) for done in range(len(tiles))]
    prompt = told[len(tiles) :]
    starts = range(usage.cached_tokens, usage.prompt_tokens, 100)
    assert prompt == [("tokens", done, usage.prompt_tokens) for done in (*starts, usage.prompt_tokens)]
    told.clear()
    varco.ask(None, "hi", max_new_tokens=2)
    assert told == []
