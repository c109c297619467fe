"""A checkpoint's tokenizer as one `tokenizer.json`.

That file as it is; else one built from vocab.json and merges.txt as transformers'
`models/qwen2/tokenization_qwen2.py` builds it. Added tokens that only tokenizer_config.json knows (or, without
`added_tokens_decoder` there, added_tokens.json and special_tokens_map.json) are put in, as transformers does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from varco_export.reading.json_file import is_there, parse_json, read_json, read_text
from varco_runtime.errors import CheckpointError

MAX_TOKENIZER_BYTES = 64 << 20

# Qwen2's own pattern: contractions, words, single digits, punctuation, line breaks, spaces. Source: transformers,
# models/qwen2/tokenization_qwen2.py.
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def make_tokenizer_json(folder: Path, config: dict[str, Any], named: dict[str, str]) -> str:
    """Return the text of `tokenizer.json`, as found if nothing has to be added to it.

    Args:
        folder: The checkpoint.
        config: Its tokenizer_config.json.
        named: Special tokens by name, as `named_tokens` finds them.

    Raises:
        CheckpointError: A file is missing or malformed, or contradicts another.
    """
    path = folder / "tokenizer.json"
    text = read_text(path, MAX_TOKENIZER_BYTES) if is_there(path) else None
    document = parse_json(path, text) if text is not None else _build(folder, config)
    model = document.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not all(type(id_) is int for id_ in vocab.values()):
        raise CheckpointError(f"{path} holds no vocabulary, expected a byte-level BPE. Copy it again.")
    added = _AddedTokens(vocab)
    entries = document.get("added_tokens") or []
    for entry in entries if isinstance(entries, list) else [entries]:
        added.add("tokenizer.json", entry, entry.get("id") if isinstance(entry, dict) else None)
    num_found = len(added.entries)
    for source, entry, id_ in _other_added_tokens(folder, config, set(named.values())):
        added.add(source, entry, id_)
    for content in named.values():
        added.add_named(content)
    if text is not None and len(added.entries) == num_found:
        return text
    document["added_tokens"] = sorted(added.entries.values(), key=lambda entry: int(entry["id"]))
    return json.dumps(document, ensure_ascii=False)


def _build(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return a `tokenizer.json` made of vocab.json and merges.txt, as transformers' Qwen2Tokenizer."""
    missing = [name for name in ("vocab.json", "merges.txt") if not is_there(folder / name)]
    if missing:
        raise CheckpointError(
            f"{folder} holds neither tokenizer.json nor {' and '.join(missing)}, expected a tokenizer. "
            "Copy its files from the repository."
        )
    name = config.get("tokenizer_class", "Qwen2Tokenizer")
    if name not in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
        raise CheckpointError(
            f"tokenizer_config.json names the class {name!r} and there is no tokenizer.json, expected Qwen2Tokenizer. "
            "Save the tokenizer as tokenizer.json with transformers."
        )
    vocab = read_json(folder / "vocab.json", max_bytes=MAX_TOKENIZER_BYTES)
    return qwen_tokenizer(
        vocab,
        _merges(folder / "merges.txt", vocab),
        byte_level(bool(config.get("add_prefix_space")), trim_offsets=True),
        post_processor=None,
        decoder=byte_level(add_prefix_space=True, trim_offsets=True, use_regex=True),
    )


def byte_level(add_prefix_space: bool, trim_offsets: bool, use_regex: bool = False) -> dict[str, Any]:
    """Return the part of a `tokenizer.json` that turns bytes into letters, or back."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": trim_offsets,
        "use_regex": use_regex,
    }


def qwen_tokenizer(
    vocab: dict[str, Any],
    merges: Sequence[Any],
    letters: dict[str, Any],
    *,
    post_processor: dict[str, Any] | None,
    decoder: dict[str, Any],
    added_tokens: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Return a `tokenizer.json` with Qwen2's words and a byte-level BPE.

    Args:
        vocab: Ids by token.
        merges: Pairs of tokens, or strings of two tokens with a blank between them, in order.
        letters: What turns bytes into letters, of `byte_level`.
        post_processor: What is done to the ids of a text, or None.
        decoder: What turns letters into bytes, of `byte_level`.
        added_tokens: Entries with `id`, `content` and flags.
    """
    split = {"type": "Split", "pattern": {"Regex": _QWEN_WORDS}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added_tokens),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, letters]},
        "post_processor": post_processor,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": list(merges),
        },
    }


def _merges(path: Path, vocab: dict[str, Any]) -> list[str]:
    """Return the merges in order. A line `#version` is no merge; `# #` is one."""
    merges: list[str] = []
    for number, line in enumerate(read_text(path, MAX_TOKENIZER_BYTES).split("\n"), 1):
        line = line.rstrip("\r")
        if not line or line.startswith("#version"):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not {*parts, "".join(parts)} <= vocab.keys():
            raise CheckpointError(
                f"{path} line {number} is {line[:80]!r}, expected two vocabulary entries that make a third. "
                "Take merges.txt and vocab.json from the same repository."
            )
        merges.append(line)
    return merges


class _AddedTokens:
    """The added tokens so far; a content keeps its id and an id its content."""

    def __init__(self, vocab: dict[str, Any]) -> None:
        self._vocab = vocab
        self._contents = {id_: content for content, id_ in vocab.items()}
        self._num_ids = max(self._contents, default=-1) + 1
        self.entries: dict[str, dict[str, Any]] = {}

    def add(self, source: str, entry: Any, id_: Any) -> None:
        """Take an entry; the first source's flags stay. Raises `CheckpointError` when it contradicts another."""
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or not content or type(id_) is not int or id_ < 0:
            raise CheckpointError(
                f"{source} holds the added token {str(entry)[:80]!r} with id {id_!r}, expected a text and a token id. "
                "Copy the file again."
            )
        known = self._id(content)
        if known not in (None, id_) or self._contents.get(id_, content) != content:
            raise CheckpointError(
                f"{source} gives the added token {content!r} the id {id_}, expected "
                f"{f'id {known}' if known is not None else f'an id that is not {self._contents[id_]!r}'} as elsewhere. "
                "Take all tokenizer files from the same repository."
            )
        self._contents[id_] = content
        self._num_ids = max(self._num_ids, id_ + 1)
        flags = {flag: bool(entry.get(flag)) for flag in _FLAGS}
        self.entries.setdefault(content, {"id": id_, "content": content, **flags})

    def add_named(self, content: str) -> None:
        """Take a special token that is known by name only: an entry of the vocabulary, or the next free id."""
        if content not in self.entries:
            known = self._id(content)
            id_ = self._num_ids if known is None else known
            self.add("special_tokens_map.json", {"content": content, "special": True}, id_)

    def _id(self, content: str) -> Any:
        return self.entries[content]["id"] if content in self.entries else self._vocab.get(content)


def _other_added_tokens(
    folder: Path, config: dict[str, Any], special: set[str]
) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Yield the added tokens outside tokenizer.json, each with its file's name and id."""
    decoder = config.get("added_tokens_decoder")
    if decoder is not None and not isinstance(decoder, dict):
        raise CheckpointError(
            f"tokenizer_config.json holds {str(decoder)[:80]!r} as added_tokens_decoder, expected an object. "
            "Copy the file again."
        )
    if decoder:
        for id_, entry in decoder.items():
            yield "tokenizer_config.json", entry, int(id_) if re.fullmatch("[0-9]{1,9}", id_) else id_
        return
    added = read_json(folder / "added_tokens.json", required=False)
    for content, id_ in sorted(added.items(), key=lambda item: item[1] if type(item[1]) is int else -1):
        is_special = content in special
        yield "added_tokens.json", {"content": content, "normalized": not is_special, "special": is_special}, id_


def named_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Return special tokens by name (`eos_token`, ...), then the additional ones, in transformers' order."""
    values = dict(config)
    if not config.get("added_tokens_decoder"):
        values |= read_json(folder / "special_tokens_map.json", required=False)
    if str(config.get("tokenizer_class", "Qwen2")).startswith("Qwen2"):
        values = {"unk_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"} | values
    found: dict[str, Any] = {name: values.get(name) for name in _NAMED}
    extra = values.get("extra_special_tokens") or values.get("additional_special_tokens") or []
    own = {name: value for name, value in values.items() if name.endswith("_token") and name not in found}
    found |= {name: value for name, value in own.items() if isinstance(value, str | dict)}
    tokens = extra if isinstance(extra, list) else []
    found |= extra if isinstance(extra, dict) else {f"extra_{number}": token for number, token in enumerate(tokens)}
    contents = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
    return {name: content for name, content in contents.items() if isinstance(content, str) and content}
