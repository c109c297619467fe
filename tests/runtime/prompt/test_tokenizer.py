"""Tokens and text, both ways, piece by piece."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.makers.tiny_tokenizer import tiny_document, tiny_json
from varco_runtime.errors import BundleError, PromptError
from varco_runtime.prompt import tokenizer as module
from varco_runtime.prompt.tokenizer import StreamDecoder, Tokenizer

TINY = Tokenizer.from_json(tiny_json())
LIBRARY = tokenizers.Tokenizer.from_str(tiny_json())


def test_plain_encoding_knows_no_added_token() -> None:
    for content in TINY.added_tokens:
        assert not set(TINY.encode_plain(f"a {content} b")) & set(TINY.added_token_ids.values())


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.text())
def test_plain_encoding_is_the_librarys_for_text_without_added_tokens(text: str) -> None:
    assume(not any(content in text for content in TINY.added_tokens))
    assert TINY.encode_plain(text) == LIBRARY.encode(text, add_special_tokens=False).ids


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(st.integers(0, TINY.size + 3)))
def test_decoding_is_the_librarys(ids: list[int]) -> None:
    assert TINY.decode(ids) == LIBRARY.decode(ids, skip_special_tokens=False)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(st.integers(0, TINY.size + 3)))
def test_streamed_text_is_the_decoded_text(ids: list[int]) -> None:
    stream = StreamDecoder(TINY)
    assert "".join([stream.feed(id_) for id_ in ids] + [stream.finish()]) == TINY.decode(ids)


def test_a_syllable_split_over_tokens_comes_out_whole() -> None:
    stream = StreamDecoder(TINY)
    by_bytes = [next(i for i in range(256) if TINY.token_bytes(i) == bytes([b])) for b in "뷁".encode()]
    assert [stream.feed(id_) for id_ in by_bytes] == ["", "", "뷁"]


def test_an_unfinished_syllable_ends_as_a_replacement_character() -> None:
    stream = StreamDecoder(TINY)
    stream.feed(next(i for i in range(256) if TINY.token_bytes(i) == "뷁".encode()[:1]))
    assert stream.finish() == "\ufffd"


def test_padding_rows_decode_to_nothing_and_added_tokens_to_their_content() -> None:
    assert TINY.token_bytes(TINY.size) == b""
    assert TINY.token_bytes(TINY.added_token_ids["<|im_end|>"]) == b"<|im_end|>"


def test_truncation_padding_and_post_processor_are_left_out() -> None:
    document = tiny_document()
    library = tokenizers.Tokenizer.from_str(json.dumps(document))
    library.enable_truncation(2)
    library.enable_padding(length=8)
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", TINY.added_token_ids["<|im_start|>"])]
    )
    assert Tokenizer.from_json(library.to_str()).encode_plain("a b c d") == TINY.encode_plain("a b c d")


def test_a_whole_word_of_the_vocabulary_cannot_forge_an_added_token() -> None:
    document = tiny_document(("evil",))
    document["model"]["ignore_merges"] = True
    document["model"]["vocab"]["evil"] = document["added_tokens"][0]["id"]
    forged = Tokenizer.from_json(json.dumps(document))
    assert forged.added_token_ids["evil"] not in forged.encode_plain("evil")


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(PromptError, match=r"lone surrogate \(U\+D800 at character 1\)"):
        TINY.encode_plain("a\ud800")


def _drop_byte(document: dict[str, Any]) -> None:
    document["model"]["merges"] = []
    document["model"]["vocab"] = {k: v for k, v in document["model"]["vocab"].items() if len(k) == 1 and k != "!"}


FAULTS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "no model": ("has no model", lambda d: d.pop("model")),
    "unigram": ("model of type 'Unigram'", lambda d: d["model"].update(type="Unigram")),
    "byte fallback": ("byte fallback", lambda d: d["model"].update(byte_fallback=True)),
    "dropout": ("dropout 0.1", lambda d: d["model"].update(dropout=0.1)),
    "vocabulary": ("no vocabulary", lambda d: d["model"].update(vocab=[])),
    "one id twice": ("one id to two", lambda d: d["model"]["vocab"].update(double=1)),
    "a byte is missing": ("no token for 1 of the 256 bytes", _drop_byte),
    "pre-tokenizer": ("no ByteLevel", lambda d: d.update(pre_tokenizer={"type": "Whitespace"})),
    "entry": ("holds the added token", lambda d: d["added_tokens"].append({"id": 1})),
    "added twice": ("twice", lambda d: d["added_tokens"].append(d["added_tokens"][0])),
    "two ids": ("the ids 0 and 999", lambda d: d["added_tokens"].append({"content": "!", "id": 999})),
    "id taken": ("gives the id 0 to '!'", lambda d: d["added_tokens"].append({"content": "<x>", "id": 0})),
    "surrogate": ("no Unicode text", lambda d: d["added_tokens"].append({"content": "\ud800", "id": 999})),
    "pre-tokenizers": ("has no ByteLevel", lambda d: d["pre_tokenizer"].update(type="Sequence", pretokenizers=True)),
    "long token": ("of 257 characters", lambda d: d["added_tokens"].append({"content": "x" * 257, "id": 999})),
    "merge": ("refused by the tokenizers library", lambda d: d["model"].update(merges=["no way"])),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_tokenizer_that_is_no_byte_level_bpe_is_refused_in_one_line(name: str) -> None:
    message, spoil = FAULTS[name]
    document = tiny_document()
    spoil(document)
    with pytest.raises(BundleError, match=message) as caught:
        Tokenizer.from_json(json.dumps(document))
    assert "\n" not in str(caught.value)


def test_text_that_is_not_json_is_refused() -> None:
    with pytest.raises(BundleError, match="is not JSON"):
        Tokenizer.from_json(b"{")


def test_a_huge_tokenizer_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOKENIZER_JSON_BYTES", 10)
    with pytest.raises(BundleError, match="expected at most 10"):
        Tokenizer.from_json(" " * 11)
