"""A model held to a grammar: valid answers of random weights, drafts of what is forced, errors of one answer alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llguidance
import pytest

from tests.makers.inputs import noise_picture
from tests.serve.grammar.conftest import closed, schema
from varco_runtime import Varco
from varco_runtime.answer.answer import Answer
from varco_runtime.engine.scheduler import Scheduler
from varco_serve.grammar import compiling
from varco_serve.grammar.errors import GrammarError
from varco_serve.grammar.grammars import Grammars

PAGE = closed(
    title={"type": "string", "maxLength": 8},
    language={"enum": ["ko", "en"]},
    lines={"type": "array", "items": closed(text={"type": "string", "maxLength": 5}), "maxItems": 2},
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.5, "seed": 4},
    {"repetition_penalty": 1.3, "presence_penalty": 1.0},
)


@pytest.fixture(scope="module")
def varco(tiny_bundle: Path) -> Varco:
    return Varco.load(tiny_bundle, threads=1, slots=3)


@pytest.fixture(scope="module")
def grammars(varco: Varco) -> Grammars:
    manifest = varco.bundle.manifest
    return Grammars(varco.session.tokenizer, manifest.generation.eos_token_ids, manifest.model.vocab_size)


def ask(varco: Varco, grammars: Grammars, grammar: dict[str, Any], **options: Any) -> Answer:
    return varco.ask(None, "Hello", constraint=grammars.constraint(grammar), **{"max_new_tokens": 200, **options})


def is_page(text: str) -> bool:
    page = json.loads(text)
    return (
        list(page) == ["title", "language", "lines"]
        and len(page["title"]) <= 8
        and page["language"] in ("ko", "en")
        and len(page["lines"]) <= 2
        and all(len(line["text"]) <= 5 for line in page["lines"])
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_random_weights_say_json_by_the_schema(varco: Varco, grammars: Grammars, options: dict[str, Any]) -> None:
    answer = ask(varco, grammars, schema(PAGE), **options)
    assert is_page(answer.text)
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] == varco.bundle.manifest.generation.eos_token_ids[0]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_drafts_of_what_is_forced_change_no_token_and_save_steps(
    varco: Varco, grammars: Grammars, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    alone = Scheduler._alone
    monkeypatch.setattr(Scheduler, "_alone", lambda self, job: (steps.append(1), alone(self, job))[1])
    plain = ask(varco, grammars, schema(PAGE), speculate=False, **options)
    assert len(steps) == len(plain.token_ids) - 1
    steps.clear()
    drafted = ask(varco, grammars, schema(PAGE), **options)
    assert drafted.token_ids == plain.token_ids
    assert len(steps) < 0.7 * len(plain.token_ids)
    if not options.get("temperature"):
        assert drafted.timings.accepted > 0.3 * len(plain.token_ids)


@pytest.mark.parametrize("task", ["ocr", "ground"])
def test_random_weights_say_markup_that_the_parser_takes(varco: Varco, grammars: Grammars, task: str) -> None:
    """They are nudged to begin and end regions, which they would not think of."""
    ids = varco.session.tokenizer.added_token_ids
    eos = varco.bundle.manifest.generation.eos_token_ids
    tags = {ids[tag]: 60 for tag in ("<char>", "</char>", "<obj>", "</obj>", "</bbox>")} | dict.fromkeys(eos, 40)
    num_regions = num_complete = 0
    for seed in range(5):
        grammar = {"kind": "markup", "task": task}
        answer = ask(varco, grammars, grammar, temperature=10.0, seed=seed, logit_bias=tags, max_new_tokens=300)
        if answer.finish_reason == "stop":
            assert answer.warnings == ()
            assert all(region.boxes for region in answer.regions)
            num_regions += len(answer.regions)
            num_complete += 1
    assert num_complete >= 2
    assert num_regions >= 3


def test_answers_beside_a_constrained_one_are_those_given_alone(varco: Varco, grammars: Grammars) -> None:
    picture = noise_picture(3)
    plain = varco.ask(picture, "What is this?", max_new_tokens=24).token_ids
    alone = ask(varco, grammars, schema(PAGE)).token_ids
    streams = [
        varco.stream(picture, "What is this?", max_new_tokens=24),
        varco.stream(None, "Hello", max_new_tokens=200, constraint=grammars.constraint(schema(PAGE))),
        varco.stream(picture, "What is this?", max_new_tokens=24),
    ]
    for _ in range(24):
        for stream in streams:
            next(stream, None)
    assert [stream.run().token_ids for stream in streams] == [plain, alone, plain]


def test_a_grammar_that_dies_under_an_answer_ends_that_answer_alone(
    varco: Varco, grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beginning can be said; then its automaton is larger than the limits, which are low here."""
    plain = varco.ask(None, "And?", max_new_tokens=24).token_ids
    monkeypatch.setattr(
        compiling, "limits", lambda: llguidance.LLParserLimits(max_lexer_states=45, verbose_errors=False)
    )
    dying = schema(closed(a={"enum": ["x", "y"]}, b={"type": "string", "minLength": 60, "maxLength": 90}))
    other = varco.stream(None, "And?", max_new_tokens=24)
    ends = varco.stream(None, "Hello", constraint=grammars.constraint(dying), max_new_tokens=150)
    next(other)
    with pytest.raises(GrammarError, match=r"cannot be held to the grammar beyond its token [1-9]\d*: ") as caught:
        ends.run()
    assert "\n" not in str(caught.value)
    assert other.run().token_ids == plain
    monkeypatch.undo()
    assert is_page(ask(varco, grammars, schema(PAGE)).text)


def test_an_answer_that_the_budget_cuts_off_is_the_beginning_of_a_valid_one(varco: Varco, grammars: Grammars) -> None:
    whole = ask(varco, grammars, schema(PAGE))
    for budget in (1, 2, 5, 9, len(whole.token_ids) - 1):
        cut = ask(varco, grammars, schema(PAGE), max_new_tokens=budget)
        assert cut.token_ids == whole.token_ids[:budget]
        assert cut.finish_reason == "length"


def test_ignore_eos_does_not_lead_beyond_a_grammar(varco: Varco, grammars: Grammars) -> None:
    answer = ask(varco, grammars, schema(PAGE), ignore_eos=True)
    assert is_page(answer.text)
    assert answer.finish_reason == "stop"


def test_probabilities_under_a_grammar_are_the_models_own(varco: Varco, grammars: Grammars) -> None:
    answer = ask(varco, grammars, schema(PAGE), top_logprobs=1)
    assert [score.token_id for score in answer.tokens] == list(answer.token_ids)
    assert any(score.logprob < -5 for score in answer.tokens), "what is forced is no likelier for it"
    assert any(score.top[0][0] != score.token_id for score in answer.tokens)
