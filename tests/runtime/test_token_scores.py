"""Probabilities of an answer's tokens, and answers that go on behind their end token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from varco_runtime import Varco
from varco_runtime.errors import UsageError


@pytest.fixture(scope="module")
def varco(tiny_bundle: Path) -> Varco:
    return Varco.load(tiny_bundle, threads=1)


def test_probabilities_are_the_softmax_of_the_scored_logits(varco: Varco) -> None:
    answer = varco.ask(None, "Hello", max_new_tokens=24, top_logprobs=4)
    rows = varco.score(None, "Hello", answer.token_ids).astype(np.float64)
    exact = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    assert [score.token_id for score in answer.tokens] == list(answer.token_ids)
    for row, score in zip(exact, answer.tokens, strict=True):
        assert score.logprob == pytest.approx(row[score.token_id], abs=1e-4)
        assert [logprob for _, _, logprob in score.top] == pytest.approx(np.sort(row)[:-5:-1].tolist(), abs=1e-4)
        assert score.top[0][:2] == (score.token_id, score.data), "the greedy choice is the likeliest"
        assert score.data == varco.session.tokenizer.token_bytes(score.token_id)


@pytest.mark.parametrize("stop", [None, "never said", "cut"])
@pytest.mark.parametrize("extra", [{}, {"temperature": 2.0, "seed": 4}], ids=str)
def test_every_token_comes_with_some_piece_though_its_text_is_held_back(
    varco: Varco, stop: str | None, extra: dict[str, Any]
) -> None:
    """Random answers are full of unfinished characters; a stop string holds back its beginnings, and cuts."""
    plain = varco.ask(None, "Hello", max_new_tokens=48, **extra)
    stop = plain.text[20:23] if stop == "cut" else stop
    stream = varco.stream(None, "Hello", max_new_tokens=48, top_logprobs=0, stop=stop, **extra)
    pieces = list(stream)
    answer = stream.answer
    assert tuple(score for piece in pieces for score in piece.tokens) == answer.tokens
    assert [score.token_id for score in answer.tokens] == list(answer.token_ids)
    assert "".join(piece.text for piece in pieces) == answer.text
    assert all(piece.text for piece in pieces[:-1]), "tokens wait for their text"
    said = b"".join(score.data for score in answer.tokens).decode(errors="replace")
    assert said.startswith(answer.text)
    assert answer.token_ids == plain.token_ids[: len(answer.token_ids)]


def test_pieces_and_answers_hold_no_tokens_unless_asked_for(varco: Varco) -> None:
    stream = varco.stream(None, "Hello", max_new_tokens=8)
    assert not any(piece.tokens for piece in stream)
    assert stream.answer.tokens == ()


@pytest.mark.parametrize("num_said", [0, 3])
def test_with_ignore_eos_an_answer_goes_on_behind_its_end_token_which_says_nothing(
    varco: Varco, num_said: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    eos = varco.bundle.manifest.generation.eos_token_ids[0]
    bias = {eos: 100}
    ended = varco.ask(None, "Hello", max_new_tokens=16, logit_bias=bias)
    assert (ended.token_ids, ended.finish_reason, ended.text) == ((eos,), "stop", "")
    answer = varco.ask(None, "Hello", max_new_tokens=5 + num_said, logit_bias=bias, ignore_eos=True, top_logprobs=0)
    assert answer.token_ids == (eos,) * (5 + num_said)
    assert (answer.finish_reason, answer.text, len(answer.tokens)) == ("length", "", 5 + num_said)


def test_ignore_eos_changes_nothing_up_to_the_end_token(varco: Varco) -> None:
    eos = varco.bundle.manifest.generation.eos_token_ids[0]
    drawn: dict[str, Any] = {"temperature": 5.0, "logit_bias": {eos: 10}, "max_new_tokens": 40}
    seed = next(seed for seed in range(20) if 1 < len(varco.ask(None, "Hello", seed=seed, **drawn).token_ids) < 30)
    ended = varco.ask(None, "Hello", seed=seed, **drawn)
    answer = varco.ask(None, "Hello", seed=seed, ignore_eos=True, **drawn)
    assert ended.token_ids[-1] == eos
    assert answer.token_ids[: len(ended.token_ids)] == ended.token_ids
    assert len(answer.token_ids) == 40
    assert answer.text.startswith(ended.text.rstrip("\ufffd"))


def test_a_bias_for_a_token_that_the_model_does_not_have_is_refused(varco: Varco) -> None:
    size = varco.bundle.manifest.model.vocab_size
    with pytest.raises(UsageError, match=f"logit_bias names token {size}, expected ids of this model, 0 to {size - 1}"):
        varco.ask(None, "Hello", logit_bias={size: 1})
