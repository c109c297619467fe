"""JSON from outside."""

from __future__ import annotations

import dataclasses

import pytest

from varco_serve.documents.errors import RequestError
from varco_serve.front.json_body import parse_json
from varco_serve.front.limits import FrontLimits

LIMITS = FrontLimits()


def test_a_document_comes_back_as_it_was_written() -> None:
    text = '{"a": [1, -2.5, 1e300, true, null], "글": "한국어 \\ud83d\\ude00", "b": 18446744073709551616}'
    assert parse_json(text.encode(), LIMITS) == {
        "a": [1, -2.5, 1e300, True, None],
        "글": "한국어 😀",
        "b": 2**64,
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b'{"a": 1} x', "is no JSON"),
        (b"\xef\xbb\xbf{}", "is no JSON"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8"),
        (b'"\xed\xa0\x80"', "is not UTF-8"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e309}', "too large"),
        (b'{"a": -1e309}', "too large"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "too large"),
        (b'{"a": ["\\ud800"]}', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "100 levels"),
        (b"[" * 300 + b"]" * 300, "100 levels"),
        (b"[" * 200_000 + b"]" * 200_000, "100 levels"),
    ],
)
def test_what_is_no_document_is_refused_in_one_line(text: bytes, says: str) -> None:
    with pytest.raises(RequestError, match=says) as refused:
        parse_json(text, LIMITS)
    assert refused.value.status == 400
    assert "\n" not in str(refused.value)


def test_a_million_parts_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        b'{"messages": [{"role": "user", "content": ['
        + b",".join([b'{"type":"text","text":"a"}'] * 1_000_000)
        + b"]}]}"
    )
    monkeypatch.setattr("varco_serve.front.json_body._DECODER", None)
    with pytest.raises(RequestError, match="commas and brackets"):
        parse_json(text, LIMITS)


def test_as_many_levels_and_structures_as_allowed_are_taken() -> None:
    limits = dataclasses.replace(LIMITS, max_depth=2, max_structures=3)
    assert parse_json(b"[[1,2]]", limits) == [[1, 2]]
    for text in (b"[[[1]]]", b"[[1,2,3]]"):
        with pytest.raises(RequestError):
            parse_json(text, limits)
