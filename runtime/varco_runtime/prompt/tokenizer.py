"""Text to token ids and back: a byte-level BPE read from a `tokenizer.json`.

`encode_plain` knows no added token: `<|im_end|>` in a text comes out as the ids of its characters. Which added tokens
count where is decided by `prompter.py`, which cuts a prompt into added tokens and plain stretches.

Decoding needs no library: every token of a byte-level BPE stands for bytes, and the bytes of all tokens together are
UTF-8 (a Hangul syllable may be split over tokens), with U+FFFD for what is not.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import tokenizers

from varco_runtime.errors import BundleError, PromptError

MAX_TOKENIZER_JSON_BYTES = 64 << 20  # Qwen's are 7 to 11 MB
MAX_ADDED_TOKEN_CHARS = 256  # real ones have up to some 40


def _byte_of_char() -> dict[str, int]:
    """Return the characters that stand for bytes in a byte-level BPE (GPT-2's `bytes_to_unicode`, inverted)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF_CHAR: Mapping[str, int] = MappingProxyType(_byte_of_char())


@dataclass(frozen=True, slots=True)
class AddedToken:
    """An entry of `added_tokens`; the flags mean what they mean in the `tokenizers` library.

    Args:
        content: Its characters.
        id: Its token id.
        single_word: It counts only where no letter, digit or underscore touches it.
        lstrip: It takes the white space in front of it.
        rstrip: It takes the white space behind it.
        normalized: It is looked for in a second pass, in what tokens without this flag have left.
        special: Transformers leaves it out of an answer's text where it is asked to; nothing here does.
    """

    content: str
    id: int
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = False


class Tokenizer:
    """A byte-level BPE with its added tokens held apart.

    `added_tokens` and `added_token_ids` are keyed by content. `size` is the largest id plus one; rows of the embedding
    table at or beyond it are padding and decode to nothing.

    Args:
        plain: The library's tokenizer without added tokens.
        token_bytes: The bytes that each id stands for, added tokens included.
        added_tokens: The added tokens, by content.
    """

    def __init__(
        self, plain: tokenizers.Tokenizer, token_bytes: Mapping[int, bytes], added_tokens: Mapping[str, AddedToken]
    ) -> None:
        self._plain = plain
        self._token_bytes = token_bytes
        self.added_tokens = added_tokens
        self.added_token_ids = {content: token.id for content, token in added_tokens.items()}
        self.size = max(token_bytes, default=-1) + 1

    @classmethod
    def from_json(cls, json_text: str | bytes) -> Tokenizer:
        """Read the text of a `tokenizer.json`; truncation, padding and post-processor in it are left out.

        Raises:
            BundleError: It is malformed, or anything but a byte-level BPE.
        """
        if len(json_text) > MAX_TOKENIZER_JSON_BYTES:
            raise BundleError(
                f"tokenizer.json has {len(json_text):,} bytes, expected at most {MAX_TOKENIZER_JSON_BYTES:,}. "
                "Export the checkpoint again."
            )
        try:
            document = json.loads(json_text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"tokenizer.json is not JSON ({error}). Export the checkpoint again.") from None
        fault = _fault(document)
        if fault is not None:
            raise BundleError(f"tokenizer.json {fault}, expected a byte-level BPE. Export the checkpoint again.")
        added_tokens = _added_tokens(document.get("added_tokens") or [])
        vocab: dict[str, int] = document["model"]["vocab"]
        content_of = {id_: content for content, id_ in vocab.items()}
        for token in added_tokens.values():
            if vocab.get(token.content, token.id) != token.id:
                raise BundleError(
                    f"tokenizer.json gives {token.content!r} the ids {vocab[token.content]} and {token.id}, "
                    "expected one. Export the checkpoint again."
                )
            if content_of.get(token.id, token.content) != token.content:
                raise BundleError(
                    f"tokenizer.json gives the id {token.id} to {content_of[token.id]!r} and to the added token "
                    f"{token.content!r}, expected one. Export the checkpoint again."
                )
        try:
            token_bytes = {id_: _bytes_of(content) for id_, content in content_of.items()}
            token_bytes |= {token.id: token.content.encode() for token in added_tokens.values()}
        except UnicodeEncodeError as error:
            raise BundleError(
                f"tokenizer.json holds a token that is no Unicode text ({error}), expected UTF-8. "
                "Export the checkpoint again."
            ) from None
        return cls(_plain_tokenizer(document, added_tokens), token_bytes, added_tokens)

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of `text` when no added token in it counts. Raises `PromptError` for a lone surrogate."""
        check_encodable(text)
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, id_: int) -> bytes:
        """Return the bytes a token stands for: UTF-8 content for an added token, nothing for a padding row."""
        return self._token_bytes.get(id_, b"")

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, added tokens included, with U+FFFD for what is not UTF-8.

        Equals transformers' `decode(skip_special_tokens=False)` without clean-up of spaces.
        """
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")


class StreamDecoder:
    """Text as the ids come; a character is given out when its last byte is there.

    The pieces of all `feed` calls and of `finish` joined are `tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, id_: int) -> str:
        """Return the characters that are complete with this id; none while one still lacks bytes."""
        return self._decoder.decode(self._tokenizer.token_bytes(id_))

    def finish(self) -> str:
        """Return what is left when no more ids come: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)


def check_encodable(text: str) -> None:
    """Raise `PromptError` when `text` is no text, or cannot be written as UTF-8."""
    if not isinstance(text, str):
        raise PromptError(f"The text is of type {type(text).__name__}, expected a string. Give the question as one.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The text holds a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}), "
            "expected Unicode text. Remove it."
        ) from None


def _bytes_of(content: str) -> bytes:
    """Return the bytes of a vocabulary entry. Entries with a character that stands for no byte keep their UTF-8."""
    try:
        return bytes(map(BYTE_OF_CHAR.__getitem__, content))
    except KeyError:
        return content.encode()


def _fault(document: Any) -> str | None:
    """Return what makes the document something else than a byte-level BPE, or None."""
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        return "has no model"
    model = document["model"]
    if model.get("type", "BPE") != "BPE":
        return f"holds a model of type {model.get('type')!r}"
    if model.get("byte_fallback") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return "holds a BPE with byte fallback, prefix or suffix"
    if model.get("dropout"):
        return f"holds a BPE with dropout {model['dropout']}"
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(type(id_) is int and id_ >= 0 for id_ in vocab.values()):
        return "has no vocabulary of ids"
    if len(set(vocab.values())) != len(vocab):
        return "gives one id to two vocabulary entries"
    missing = [char for char in BYTE_OF_CHAR if char not in vocab]
    if missing:  # the library would drop such a byte without a word
        return f"has no token for {len(missing)} of the 256 bytes"
    if "ByteLevel" not in _types(document.get("pre_tokenizer")) or "ByteLevel" not in _types(document.get("decoder")):
        return "has no ByteLevel pre-tokenizer and decoder"
    return None


def _types(component: Any) -> list[Any]:
    """Return the types in a pre-tokenizer or decoder, those of a sequence one by one."""
    if not isinstance(component, dict):
        return []
    parts = component.get("pretokenizers") or component.get("decoders")
    parts = parts if isinstance(parts, list) else []
    return [component.get("type"), *(part.get("type") for part in parts if isinstance(part, dict))]


def _added_tokens(entries: Any) -> dict[str, AddedToken]:
    """Return the added tokens by content. Raises `BundleError` for a malformed or repeated entry."""
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    added: dict[str, AddedToken] = {}
    ids: set[int] = set()
    for entry in entries if isinstance(entries, list) else [entries]:
        content = entry.get("content") if isinstance(entry, dict) else None
        id_ = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(content, str) or not content or type(id_) is not int or id_ < 0:
            raise BundleError(
                f"tokenizer.json holds the added token {str(entry)[:80]!r}, expected an object with content and id. "
                "Export the checkpoint again."
            )
        if len(content) > MAX_ADDED_TOKEN_CHARS:
            raise BundleError(
                f"tokenizer.json holds an added token of {len(content):,} characters ({content[:40]!r}...), expected "
                f"at most {MAX_ADDED_TOKEN_CHARS}. Export the checkpoint again."
            )
        if content in added or id_ in ids:
            raise BundleError(
                f"tokenizer.json holds the added token {content!r} (id {id_}) twice, expected each content and id "
                "once. Export the checkpoint again."
            )
        added[content] = AddedToken(content, id_, **{flag: bool(entry.get(flag)) for flag in flags})
        ids.add(id_)
    return added


def _plain_tokenizer(document: dict[str, Any], added_tokens: Mapping[str, AddedToken]) -> tokenizers.Tokenizer:
    """Return the library's tokenizer without added tokens.

    Raises:
        BundleError: The library refuses the document.
    """
    model = document["model"]
    if model.get("ignore_merges"):
        # Such a model takes a whole word from the vocabulary, so an added token's entry there could be forged.
        model = model | {"vocab": {k: v for k, v in model["vocab"].items() if k not in added_tokens}}
    plain = document | {"model": model, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # the library raises bare Exception
        raise BundleError(
            f"tokenizer.json is refused by the tokenizers library ({error}), expected a byte-level BPE. "
            "Export the checkpoint again."
        ) from None
