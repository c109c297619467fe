"""Drafts: what is proposed, what a step of several tokens gives, and that no answer changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from varco_runtime import Varco
from varco_runtime.backend import MAX_STEP_TOKENS
from varco_runtime.generation.speculation import BoxGrammar, Chances, Drafter, Guess, Repeats, StepCosts
from varco_runtime.prompt.tokenizer import Tokenizer

BOXES = (
    "<char>EXIT</char><bbox>0.123, 0.456, 0.189, 0.512</bbox>\n<char>TO</char><bbox>0.201, 0.457, 0.298, 0.511</bbox>"
)


@pytest.fixture(scope="module")
def varco(tiny_bundle: Path) -> Varco:
    return Varco.load(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def tokenizer(varco: Varco) -> Tokenizer:
    return varco.session.tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Markup tags as their own tokens, the rest character by character."""
    ids: list[int] = []
    while text:
        tag = next((tag for tag in tokenizer.added_token_ids if text.startswith(tag)), None)
        ids += tokenizer.encode_plain(text[0]) if tag is None else [tokenizer.added_token_ids[tag]]
        text = text[len(tag or text[0]) :]
    return ids


def proposals(tokenizer: Tokenizer, text: str) -> str:
    grammar = BoxGrammar(tokenizer)
    for token in encode(tokenizer, text):
        grammar.feed(token)
    return tokenizer.decode(guess.token for guess in grammar.next())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A sign that says", ""),
        ("<char>EXIT</char>", "<bbox>"),
        ("<obj>cat</obj>", "<bbox>"),
        ("<char>EXIT</char><bbox>", "0."),
        ("<char>EXIT</char><bbox>0.12", ""),
        ("<char>EXIT</char><bbox>0.123", ", "),
        ("<char>EXIT</char><bbox>0.123, ", "0."),
        ("<char>EXIT</char><bbox>0.123, 0.456, 0.", "1"),  # x2 like x1
        ("<char>EXIT</char><bbox>0.123, 0.456, 0.2", ""),
        ("<char>EXIT</char><bbox>0.123, 0.456, 0.789, 0.512", "</bbox>"),
        ("<char>EXIT</char><bbox>0.123, 0.456, 0.789, 0.512</bbox><char>TO</char><bbox>0.", "7"),  # x1 like the last x2
        (
            "<char>A</char><bbox>0.123, 0.456, 0.789, 0.512</bbox><char>B</char><bbox>0.801, 0.4",
            "5",
        ),  # y1 like y1
        ("<char>EXIT</char><bbox>1.000", ""),
        ("<char>EXIT</char><bbox>nonsense", ""),
        ("<char>EXIT</char><bbox>0.1, 0.2, 0.3, 0.4, ", ""),
    ],
)
def test_the_grammar_of_boxes(tokenizer: Tokenizer, text: str, expected: str) -> None:
    assert proposals(tokenizer, text) == expected


def test_the_grammar_learns_how_many_decimals_a_model_writes(tokenizer: Tokenizer) -> None:
    assert proposals(tokenizer, "<char>A</char><bbox>0.12, 0.45") == ", "


def test_repeats_follow_the_longest_known_context() -> None:
    repeats = Repeats(frozenset({9}))
    for token in (1, 2, 3, 4, 5, 2, 3, 6, 9, 7):
        repeats.feed(token)
    assert repeats.next((1, 2, 3)) == [Guess(4, "repeat 3")]
    assert repeats.next((8, 2, 3)) == [Guess(6, "repeat 2")]
    assert repeats.next((8, 8, 9)) == [Guess(7, "after tag 9")]
    assert repeats.next((8, 8, 8)) == []


def test_a_draft_is_as_long_as_it_pays(tokenizer: Tokenizer) -> None:
    def drafted(slope: float) -> int:
        costs = StepCosts(1.0)
        drafter = Drafter(tokenizer, (), Chances(), costs)
        for token in encode(tokenizer, BOXES + "\n<char>X</char>"):
            drafter.feed(token)
        costs.slope = slope
        return len(drafter.propose(MAX_STEP_TOKENS))

    assert drafted(0.0) == MAX_STEP_TOKENS - 1
    assert 0 < drafted(0.4) < MAX_STEP_TOKENS - 1
    assert drafted(1.0) == 0


def test_a_source_that_is_wrong_is_no_longer_asked_and_tried_again_later() -> None:
    chances = Chances()
    for _ in range(60):
        chances.count("zero", right=False)
    assert chances.of("zero") < 0.01
    for _ in range(3000):
        chances.drift()
    assert chances.of("zero") > 0.8


def test_chances_drift_as_if_every_mean_were_moved_at_every_token() -> None:
    chances, naive = Chances(), dict[str, float]()
    rng = np.random.default_rng(4)
    sources = ["open", "zero", "repeat 2", "repeat 3", "digit 1 of number 2"]
    starts = {source: Chances().of(source) for source in sources}
    for _ in range(4000):
        if rng.random() < 0.8:
            chances.drift()
            naive = {source: mean + 0.002 * (starts[source] - mean) for source, mean in naive.items()}
        else:
            source, right = str(rng.choice(sources)), bool(rng.random() < 0.5)
            chances.count(source, right)
            mean = naive.get(source, starts[source])
            naive[source] = mean + 0.1 * (float(right) - mean)
        assert all(chances.of(source) == pytest.approx(mean, rel=1e-12) for source, mean in naive.items())
    assert naive.keys() == starts.keys()


def test_costs_are_learnt_from_the_steps() -> None:
    costs = StepCosts()
    costs.count(1, 9.0)  # the first of each length makes its buffers, and does not count
    costs.count(5, 9.0)
    for _ in range(100):
        costs.count(1, 0.010)
        costs.count(5, 0.018)
    assert costs.base == pytest.approx(0.010)
    assert costs.slope == pytest.approx(0.2, rel=0.01)


def test_one_slow_moment_does_not_end_all_drafts(tokenizer: Tokenizer) -> None:
    costs = StepCosts()
    for _ in range(20):
        costs.count(1, 0.010)
        costs.count(2, 0.030)
    drafter = Drafter(tokenizer, (), Chances(), costs)
    label = encode(tokenizer, "<char>X</char>")
    for token in label:
        drafter.feed(token)
    assert costs.slope > 1
    assert drafter.propose(MAX_STEP_TOKENS) == []
    for _ in range(6000):
        drafter.feed(5)
    for token in label:
        drafter.feed(token)
    assert drafter.propose(MAX_STEP_TOKENS) != []


class Scripted:
    """A decoder that says a given text whatever it is asked, and records its steps."""

    def __init__(self, script: list[int], vocab_size: int, start: int) -> None:
        self.script, self.vocab_size, self.start = script, vocab_size, start
        self.steps: list[int] = []

    def after(self, position: int) -> np.ndarray:
        logits = np.zeros(self.vocab_size, np.float32)
        logits[self.script[position - self.start]] = 1
        return logits

    def decode_steps(self, token_ids: list[int], position: int) -> np.ndarray:
        self.steps.append(len(token_ids))
        last = self.start + len(self.script) - 2
        return np.stack([self.after(min(position + i, last) + 1) for i in range(len(token_ids))])


def scripted(tokenizer: Tokenizer, max_new_tokens: int) -> tuple[list[int], list[int], list[int], list[int], Drafter]:
    from varco_runtime.bundle.settings import GenerationSettings
    from varco_runtime.generation.loop import Decoding, generate_tokens
    from varco_runtime.generation.sampling import Sampler, SamplingSettings

    eos = tokenizer.added_token_ids["<|im_end|>"]
    script = [*encode(tokenizer, BOXES), eos]
    backend = Scripted(script, tokenizer.size, start=10)
    drafter = Drafter(tokenizer, (), Chances(), StepCosts(1.0, 0.0))
    sampler = Sampler(SamplingSettings(), GenerationSettings((eos,), 1.0, False))
    put: list[int] = []
    decoding = Decoding(
        backend,  # type: ignore[arg-type]
        logits=backend.after(10),
        position=10,
        sampler=sampler,
        eos_token_ids=(eos,),
        max_new_tokens=max_new_tokens,
        on_token=put.append,
        drafter=drafter,
    )
    told = list(generate_tokens(decoding))
    return told, script, put, backend.steps, drafter


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 20, 41, 1000])
def test_drafts_change_the_number_of_steps_and_no_token(tokenizer: Tokenizer, max_new_tokens: int) -> None:
    told, script, put, steps, drafter = scripted(tokenizer, max_new_tokens)
    assert told == script[:max_new_tokens]
    assert put == told[:-1]  # the last token is never put into the cache
    assert len(steps) == len(told) - 1 - drafter.accepted
    assert sum(steps) == len(steps) + drafter.drafted
    if max_new_tokens == 1000:
        assert drafter.accepted > len(told) / 3


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.2}])
def test_answers_are_the_same_with_and_without_drafts(varco: Varco, options: dict[str, float]) -> None:
    for prompt in ("<ocr>", "Hello", "Say it again and again and again and again."):
        with_drafts = varco.ask(None, prompt, max_new_tokens=96, **options)  # type: ignore[arg-type]
        without = varco.ask(None, prompt, max_new_tokens=96, speculate=False, **options)  # type: ignore[arg-type]
        assert with_drafts.token_ids == without.token_ids
        assert without.timings.drafted == 0


def test_drawn_answers_are_never_drafted(varco: Varco) -> None:
    answer = varco.ask(None, "Hello Hello Hello Hello", max_new_tokens=64, temperature=0.7, seed=1)
    assert answer.timings.drafted == 0
