"""A byte-level BPE of a few hundred tokens in Qwen's manner, for tests that need no real vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = (
    "Describe this image. 이 그림을 설명해 주세요. The cats lie on the sofa.",
    "고양이 두 마리가 누워 있다.\n\n system user ",
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[UNK]")
MARKUP = ("<gro>", "<ocr>", "<char>", "</char>", "<obj>", "</obj>", "<bbox>", "</bbox>", "<delim>")
WORDS = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@cache
def _base_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    text: str = tokenizer.to_str()
    return text


def tiny_document(
    added: tuple[str, ...] = (*SPECIAL, *MARKUP, "<image>"), flags: Mapping[str, bool] | None = None
) -> dict[str, Any]:
    """The `tokenizer.json` as an object; `flags` go to every added token."""
    document: dict[str, Any] = json.loads(_base_json())
    size = len(document["model"]["vocab"])
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    document["added_tokens"] = [
        {"id": size + number, "content": content, **plain, **(flags or {})} for number, content in enumerate(added)
    ]
    return document


def tiny_json(added: tuple[str, ...] = (*SPECIAL, *MARKUP, "<image>"), flags: Mapping[str, bool] | None = None) -> str:
    return json.dumps(tiny_document(added, flags), ensure_ascii=False)
