"""Errors of the runtime as a caller over HTTP is told of them."""

from __future__ import annotations

import re

import pytest

from varco_runtime.errors import (
    BackendError,
    BundleError,
    ContextError,
    ImageError,
    PromptError,
    ShortageError,
    UsageError,
    VideoError,
)
from varco_serve.grammar.errors import GrammarBusyError, GrammarError
from varco_serve.worker.failures import failed_of

OURS = re.compile(r"/|\\|--|varco|Error|Traceback|0x|\bload with\b|untrained=|max_context\b", re.IGNORECASE)
"""What a caller over HTTP must not read: paths, options of the command, names of our code."""

KNOWN = [
    (
        ContextError(
            "The prompt has 1200 tokens, 900 of them the picture's, the context holds 1024 and needs room for an "
            "answer. Ask less, use a smaller picture, or load with a larger max_context (this bundle allows 4096)."
        ),
        "context_length_exceeded",
        "The prompt has 1200 tokens, 900 of them the picture's, the context holds 1024 and needs room for an answer. "
        "Ask less, use a smaller picture.",
    ),
    (
        ImageError(
            "The conversation shows 9 pictures, this model was trained with 4 pictures at a time. Ask about fewer, or "
            "try it nevertheless: untrained=True, or varco run --untrained."
        ),
        "invalid_image",
        "The conversation shows 9 pictures, this model was trained with 4 pictures at a time. Ask about fewer.",
    ),
    (PromptError("The text holds a lone surrogate. Expected text."), "invalid_prompt", None),
    (VideoError("This bundle takes no video. Expected pictures."), "invalid_prompt", None),
    (UsageError("temperature=-1 is out of range. Expected 0 or more."), "invalid_value", None),
    (GrammarError("The schema has no type. Name one."), "invalid_grammar", None),
]


def test_a_grammar_that_others_keep_waiting_may_be_asked_again_as_it_is() -> None:
    failed = failed_of(GrammarBusyError("Other grammars take long to compile. Ask again in a while."))
    assert (failed.status, failed.code, failed.param, failed.retry_after_s) == (429, "grammars_busy", None, 5.0)


@pytest.mark.parametrize(("error", "code", "line"), KNOWN, ids=lambda value: type(value).__name__)
def test_what_is_wrong_with_a_question_is_said(error: Exception, code: str, line: str | None) -> None:
    failed = failed_of(error)
    assert (failed.status, failed.code) == (400, code)
    assert failed.message == (str(error) if line is None else line)
    assert not OURS.search(failed.message)


@pytest.mark.parametrize(
    "error",
    [
        BackendError("/opt/model/decoder.onnx could not be run: CUDA error 700."),
        ShortageError("The device has 12 MB."),
        BundleError("/srv/bundle was altered."),
        MemoryError(),
        RuntimeError("0x7f3a"),
        KeyError("prompt"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_wrong_with_us_is_not(error: Exception) -> None:
    failed = failed_of(error)
    assert failed.status == 500
    assert "\n" not in failed.message
    assert not OURS.search(failed.message)


def test_a_line_is_bounded_and_one() -> None:
    failed = failed_of(PromptError("a\nb " * 5000))
    assert len(failed.message) <= 500
    assert "\n" not in failed.message
