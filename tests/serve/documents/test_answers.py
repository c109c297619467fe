"""Events of answers as OpenAI's documents: whole, in chunks, with probabilities, and what OpenAI has no place for."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles.model import FACTS, done
from varco_runtime.answer.token_score import TokenScore
from varco_serve.documents.answers import ChatStream, chat_answer, fingerprint
from varco_serve.messages import Begun, Done, Said

REGION = {"kind": "text", "text": "EXIT", "start": 0, "end": 4, "boxes": [[0, 0, 1, 1]], "boxes_px": [[0, 0, 9, 9]]}
SCORES = (TokenScore(5, b"Hi", -0.5, ((5, b"Hi", -0.5), (6, b"\xea\xb0", float("-inf")))),)
END = Said("", "", tokens=(TokenScore(2, b"<|im_end|>", -0.25),))
HEAD = ("varco", "chatcmpl-1", 1_700_000_000)


def whole(*choices: list[Said | Done]) -> dict[str, Any]:
    return chat_answer(*HEAD, choices, fingerprint="fp_1")


def test_a_whole_answer() -> None:
    answer = whole([Said("Hi", "Hi"), done("Hi", warnings=["odd"])])
    assert answer == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "varco",
        "system_fingerprint": "fp_1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "varco": {
                    "plain_text": "Hi",
                    "regions": [],
                    "picture": None,
                    "media": [],
                    "warnings": ["odd"],
                    "finish_reason": "stop",
                },
            }
        ],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 2,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 3, "image_tokens": 0},
        },
    }


def test_several_answers_count_their_prompt_once_and_their_tokens_together() -> None:
    second = done("abc", usage={"prompt_tokens": 7, "image_tokens": 4, "completion_tokens": 3, "cached_tokens": 6})
    answer = whole([done("Hi")], [second])
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["Hi", "abc"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 3, "image_tokens": 4},
    }


@pytest.mark.parametrize(
    ("reason", "finish_reason"),
    [("stop", "stop"), ("stop_string", "stop"), ("loop", "stop"), ("length", "length"), ("cancelled", "length")],
)
def test_reasons_to_end_in_openais_words_and_in_the_runtimes(reason: str, finish_reason: str) -> None:
    choice = whole([done("Hi", reason)])["choices"][0]
    assert (choice["finish_reason"], choice["varco"]["finish_reason"]) == (finish_reason, reason)
    chunk = ChatStream(*HEAD).take(0, done("Hi", reason))[-1]["choices"][0]
    assert (chunk["finish_reason"], chunk["varco"]["finish_reason"]) == (finish_reason, reason)


def test_probabilities_are_laid_out_as_openai_does() -> None:
    expected = {
        "content": [
            {
                "token": "Hi",
                "logprob": -0.5,
                "bytes": [72, 105],
                "top_logprobs": [
                    {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]},
                    {"token": "\ufffd", "logprob": -9999.0, "bytes": [0xEA, 0xB0]},
                ],
            }
        ],
        "refusal": None,
    }
    said = Said("Hi", "Hi", tokens=SCORES)
    assert whole([said, END, done("Hi")])["choices"][0]["logprobs"] == expected
    assert ChatStream(*HEAD).take(0, said)[-1]["choices"][0]["logprobs"] == expected


def choices_of(stream: ChatStream, *events: tuple[int, Any]) -> list[dict[str, Any]]:
    chunks = [chunk for index, event in events for chunk in stream.take(index, event)]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks} <= {("chatcmpl-1", HEAD[2], "varco")}
    return [chunk["choices"][0] for chunk in chunks]


def test_a_stream_says_role_text_and_end_once() -> None:
    choices = choices_of(
        ChatStream(*HEAD), (0, Begun(7)), (0, Said("H", "H")), (0, Said("", "")), (0, Said("i", "i")), (0, done("Hi"))
    )
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "H"},
        {"content": "i"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]


def test_choices_begin_in_the_order_of_their_numbers_whichever_comes_first() -> None:
    choices = choices_of(ChatStream(*HEAD), (1, Begun(7)), (1, Said("b", "b")), (0, Begun(7)), (0, Said("a", "a")))
    assert [(choice["index"], choice["delta"].get("role")) for choice in choices] == [
        (0, "assistant"),
        (1, "assistant"),
        (1, None),
        (0, None),
    ]


def test_regions_come_with_the_chunk_that_closes_them_and_plain_text_where_it_differs() -> None:
    choices = choices_of(
        ChatStream(*HEAD),
        (0, Said("<char>EXIT", "EXIT")),
        (0, Said("</bbox>", "", (REGION,))),
        (0, Said("", "", (REGION,))),
        (0, Said(" ", " ")),
        (0, done("x", warnings=["odd"], picture={"width": 9, "height": 9}, regions=[REGION])),
    )
    assert [choice.get("varco") for choice in choices] == [
        None,
        {"plain_text": "EXIT"},
        {"plain_text": "", "regions": [REGION]},
        {"regions": [REGION]},
        None,
        {"picture": {"width": 9, "height": 9}, "media": [], "warnings": ["odd"], "finish_reason": "stop"},
    ]


def test_a_stream_counts_tokens_at_its_end_where_that_is_asked() -> None:
    stream = ChatStream(*HEAD, include_usage=True, fingerprint="fp_1")
    chunks = [chunk for event in (Begun(7), Said("Hi", "Hi"), done("Hi")) for chunk in stream.take(0, event)]
    assert all(chunk["usage"] is None for chunk in chunks)
    (last,) = stream.end()
    assert last["choices"] == []
    assert last["usage"] == whole([done("Hi")])["usage"]
    assert last["system_fingerprint"] == "fp_1"
    assert ChatStream(*HEAD).end() == []


def tokens_of(choice: dict[str, Any]) -> list[str] | None:
    return choice["logprobs"] and [entry["token"] for entry in choice["logprobs"]["content"]]


def test_a_token_that_lets_out_no_text_goes_with_the_next_that_does() -> None:
    half = Said("", "", tokens=SCORES)
    choices = choices_of(ChatStream(*HEAD), (0, Begun(7)), (0, half), (1, half), (0, Said("가", "가", tokens=SCORES)))
    assert [(choice["index"], choice["delta"].get("content"), tokens_of(choice)) for choice in choices] == [
        (0, "", None),
        (1, "", None),
        (0, "가", ["Hi", "Hi"]),
    ]


def test_the_token_that_ends_an_answer_is_not_among_its_probabilities() -> None:
    half = Said("", "", tokens=SCORES)
    assert tokens_of(choices_of(ChatStream(*HEAD), (0, END), (0, done("")))[-1]) is None
    assert tokens_of(choices_of(ChatStream(*HEAD), (0, half), (0, END), (0, done("")))[-1]) == ["Hi"]
    assert tokens_of(choices_of(ChatStream(*HEAD), (0, half), (0, done("", "length")))[-1]) == ["Hi"]
    assert tokens_of(whole([half, done("", "length")])["choices"][0]) == ["Hi"]
    assert tokens_of(whole([END, done("")])["choices"][0]) == []
    last = Said("}", "}", tokens=SCORES)  # a grammar that allows nothing more ends an answer without such a token
    assert tokens_of(whole([last, done("}")])["choices"][0]) == ["Hi"]
    assert tokens_of(choices_of(ChatStream(*HEAD), (0, last), (0, done("}")))[1]) == ["Hi"]


SAID = st.builds(Said, st.text(max_size=2), st.text(max_size=2), st.just(()) | st.just((REGION,)), st.just(SCORES))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.lists(SAID, max_size=4), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_however_answers_mix_each_choice_is_whole(saids: list[list[Said]], random: Random) -> None:
    waiting: list[tuple[int, list[Any]]] = [
        (index, [Begun(7), *said, done("".join(one.text for one in said), "length")])
        for index, said in enumerate(saids)
    ]
    stream, choices = ChatStream(*HEAD), []
    while waiting:
        index, events = random.choice(waiting)
        choices += choices_of(stream, (index, events.pop(0)))
        waiting = [one for one in waiting if one[1]]
    for index, said in enumerate(saids):
        own = [choice for choice in choices if choice["index"] == index]
        assert [choice["delta"].get("role") for choice in own] == ["assistant"] + [None] * (len(own) - 1)
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["length"]
        assert "".join(choice["delta"].get("content", "") for choice in own) == "".join(one.text for one in said)
        assert sum(len(tokens_of(choice) or ()) for choice in own) == len(said)
        regions = [region for choice in own for region in choice.get("varco", {}).get("regions", ())]
        assert regions == [region for one in said for region in one.regions]


def test_the_fingerprint_is_that_of_what_decides_an_answer() -> None:
    assert fingerprint(FACTS).startswith("fp_")
    started_again = replace(FACTS, details=FACTS.details | {"load_s": 3.5}, slots=5)
    assert fingerprint(started_again) == fingerprint(FACTS)
    for name in ("bundle", "version", "provider", "precision"):
        assert fingerprint(replace(FACTS, details=FACTS.details | {name: "another"})) != fingerprint(FACTS)
