"""Asks, events and facts survive the wire."""

from __future__ import annotations

import json

import pytest

from varco_runtime.answer.token_score import TokenScore
from varco_serve.codec import ask_header, ask_of, event_header, event_of, facts_header, facts_of
from varco_serve.messages import Ask, AskTurn, Begun, Done, Event, Facts, Failed, Pixels, Said

TOKENS = (
    TokenScore(5, b"\xea\xb0", -0.25, ((5, b"\xea\xb0", -0.25), (6, b"", -1.5))),
    TokenScore(7, b"a", -2.0),
)
EVENTS: list[Event] = [
    Begun(12),
    Said("", ""),
    Said("<char>a</char>", "a", ({"kind": "text", "text": "a", "box": [0.1, 0.2, 0.3, 0.4]},), TOKENS),
    Done({"text": "a", "usage": {"prompt_tokens": 3}}),
    Failed(500, "It failed."),
    Failed(429, "Full.", "queue_full", "messages", 1.5),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_out_as_it_went_in(event: Event) -> None:
    assert event_of(json.loads(json.dumps(event_header(event)))) == event


def test_what_is_no_event_is_our_fault() -> None:
    with pytest.raises(ValueError, match="Bug"):
        event_of({"kind": "sung"})


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_ask_comes_out_as_it_went_in(count: int) -> None:
    pictures = tuple(Pixels(index + 1, 2, bytes([index]) * (6 * (index + 1)), index == 1) for index in range(count))
    turns = (AskTurn("system", ("Be brief.",)), AskTurn("user", ("First: ", *range(count), "What?")))
    ask = Ask(turns, pictures, {"temperature": 0.5, "stop": ["a"]}, {"kind": "json_object"})
    header, bodies = ask_header(ask)
    assert ask_of(json.loads(json.dumps(header)), memoryview(b"".join(bodies))) == ask


def test_facts_come_out_as_they_went_in() -> None:
    for facts in (Facts(100, 2, None, 50), Facts(100, 2, 4, 50, {"license": "cc-by-nc-4.0", "why": None})):
        assert facts_of(json.loads(json.dumps(facts_header(facts)))) == facts
