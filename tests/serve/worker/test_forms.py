"""The model's grammars are made once, by whoever asks for one first."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.makers.threads import in_threads
from varco_runtime import Varco
from varco_runtime.generation.constraint import Constraint
from varco_serve.grammar import grammars
from varco_serve.grammar.errors import GrammarError
from varco_serve.worker.failures import failed_of
from varco_serve.worker.forms import Forms


def test_grammars_are_made_by_the_first_who_asks_and_shared(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    tokenizer = grammars.ll_tokenizer
    monkeypatch.setattr(grammars, "ll_tokenizer", lambda *given: (made.append(given), tokenizer(*given))[1])
    forms = Forms(Varco.load(tiny_bundle, threads=1))
    assert not made
    constraints: list[Constraint] = []
    in_threads(lambda _: constraints.append(forms.constraint({"kind": "json_object"})), 6)
    assert len(made) == 1
    assert len({id(constraint) for constraint in constraints}) == 6


def test_an_error_of_a_grammar_is_the_callers() -> None:
    failed = failed_of(GrammarError("The grammar is refused: Unimplemented keys. Change it."))
    assert (failed.status, failed.code, failed.param) == (400, "invalid_grammar", "response_format")
    assert failed.message == "The grammar is refused: Unimplemented keys. Change it."
