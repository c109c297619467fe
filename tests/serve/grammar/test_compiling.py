"""Grammars are compiled once, under a deadline, on threads of their own, and the latest of them kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import llguidance
import pytest

from tests.makers.threads import in_threads
from tests.serve.grammar.conftest import Small, closed, schema, walk
from varco_serve.grammar import compiling
from varco_serve.grammar.compiling import MAX_AT_ONCE, MAX_KEPT, Compiled
from varco_serve.grammar.errors import GrammarBusyError, GrammarError, reason_of
from varco_serve.grammar.json_schema import schema_grammar
from varco_serve.grammar.vocabulary import ll_tokenizer


@pytest.fixture
def compiled(small: Small) -> Compiled:
    return Compiled(ll_tokenizer(small.tokenizer, small.eos_token_ids, small.vocab_size), deadline_s=60)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Compiling lasts until this event."""
    go_on, compile_ = threading.Event(), compiling._matcher

    def slow(tokenizer: llguidance.LLTokenizer, grammar: str) -> llguidance.LLMatcher:
        assert go_on.wait(60)
        return compile_(tokenizer, grammar)

    monkeypatch.setattr(compiling, "_matcher", slow)
    yield go_on
    go_on.set()


def text(number: int) -> str:
    return schema_grammar({"const": number})


def test_a_grammar_is_compiled_once_whoever_asks(compiled: Compiled) -> None:
    matchers: list[llguidance.LLMatcher] = []
    in_threads(lambda _: matchers.append(compiled.matcher(text(1))), 8)
    assert compiled.num_compiled == 1
    assert len({id(matcher) for matcher in matchers}) == 8


def test_the_latest_used_are_kept_and_no_more(compiled: Compiled) -> None:
    for number in range(MAX_KEPT):
        compiled.matcher(text(number))
    compiled.matcher(text(0))
    compiled.matcher(text(MAX_KEPT))
    assert compiled.num_compiled == MAX_KEPT + 1
    compiled.matcher(text(0))
    assert compiled.num_compiled == MAX_KEPT + 1
    compiled.matcher(text(1))
    assert compiled.num_compiled == MAX_KEPT + 2
    assert len(compiled._kept) == MAX_KEPT


def test_one_that_takes_too_long_is_refused_and_there_for_whoever_asks_later(
    compiled: Compiled, stuck: threading.Event
) -> None:
    compiled._deadline_s = 0.01
    with pytest.raises(GrammarError, match=r"longer to compile than 0\.01 s"):
        compiled.matcher(text(1))
    stuck.set()
    compiled._deadline_s = 60
    compiled.matcher(text(1))
    assert compiled.num_compiled == 1


def test_a_few_that_take_long_do_not_take_all_threads(compiled: Compiled, stuck: threading.Event) -> None:
    compiled._deadline_s = 0.01
    before = threading.active_count()
    for number in range(20):
        with pytest.raises(GrammarError, match="long") as caught:
            compiled.matcher(text(number))
        # Who comes behind them is not at fault, and may ask again.
        assert isinstance(caught.value, GrammarBusyError) is (number >= MAX_AT_ONCE)
    assert threading.active_count() - before <= MAX_AT_ONCE
    stuck.set()
    compiled._deadline_s = 60
    compiled.matcher(text(50))


def test_a_refusal_is_kept_too_and_grows_no_traceback(compiled: Compiled) -> None:
    refused = schema_grammar({"not": {}})
    for _ in range(3):
        with pytest.raises(GrammarError, match="not") as caught:
            compiled.matcher(refused)
        assert len(caught.traceback) < 6
    assert compiled.num_compiled == 1


def test_a_panic_of_the_library_is_one_line(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """As pyo3's, which is no Exception."""

    def panic(*_: object) -> None:
        raise Panic("index out of bounds at /build/src/lib.rs:7")

    monkeypatch.setattr(compiling, "_matcher", panic)
    with pytest.raises(GrammarError, match=r"^The grammar cannot be compiled\. Send another one\.$"):
        compiled.matcher(text(1))


def test_where_no_thread_can_be_started_the_next_one_who_asks_tries_again(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(2 * MAX_AT_ONCE):
            with pytest.raises(GrammarBusyError, match="No thread can be started"):
                compiled.matcher(text(1))
    compiled.matcher(text(1))


def test_the_stack_of_other_threads_stays_as_it_was(compiled: Compiled) -> None:
    before = threading.stack_size()
    compiled.matcher(text(1))
    assert threading.stack_size() == before


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("regex parse error:\n    (((\n    ^\nerror: unclosed group", "regex parse error: error: unclosed group"),
        ("panic: assertion failed: x < y\n<backtrace>\n  0: <unknown>", "it is larger than the grammar library holds"),
        ("lexer error: too many states: 60 >= 60\n<non-verbose/>", "lexer error: too many states: 60 >= 60"),
        ("x" * 1000, "x" * 200),
        ("", "the grammar library gives no reason"),
    ],
)
def test_what_the_library_says_is_told_in_one_line(said: str, told: str) -> None:
    assert reason_of(said) == told


def test_answers_go_on_where_earlier_ones_have_filled_what_they_share(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All answers of a grammar share its lexer's states, of which there is a most: here some ten answers' worth."""
    grammar = schema(closed(lines={"type": "array", "items": {"type": "string", "maxLength": 40}, "maxItems": 3}))
    alone = [walk(small, small.grammars.constraint(grammar), seed).ids for seed in range(60)]
    monkeypatch.setattr(
        compiling, "limits", lambda: llguidance.LLParserLimits(max_lexer_states=300, verbose_errors=False)
    )
    small.grammars.compiled._kept.clear()
    before = small.grammars.compiled.num_compiled
    assert [walk(small, small.grammars.constraint(grammar), seed).ids for seed in range(60)] == alone
    assert small.grammars.compiled.num_compiled > before + 1
    small.grammars.compiled._kept.clear()
