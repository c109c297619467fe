"""The tokenizer: byte-level BPE of 640 tokens in which every digit, capital, syllable and coordinate is one token.

`0.37` and `, ` are one token each, so a box costs nine tokens. Hangul syllables get two merges (their first two bytes,
then the third); a few dozen merges for the words of the prompts and answers are learnt from `tasks.corpus`.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from training.lexicon import COLOURS, SHAPES, SYLLABLES
from training.tasks import corpus

VOCAB_SIZE = 640
PAD, IM_START, IM_END, IMAGE = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"
MARKUP = ("<gro>", "<ocr>", "<char>", "</char>", "<obj>", "</obj>", "<bbox>", "</bbox>", "<delim>")
SPECIAL = (PAD, IM_START, IM_END, *MARKUP, IMAGE)
PIECES = r"0\.\d{1,2}|\p{N}|, | ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- endfor -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}"
    "{%- endif -%}{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def byte_characters() -> dict[int, str]:
    """Return GPT-2's printable character of every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def _merges(count: int) -> list[tuple[str, str]]:
    """Return the merges: coordinates, the comma, syllables, then `count` learnt from the corpus."""
    characters = byte_characters()

    def visible(text: str) -> list[str]:
        return [characters[byte] for byte in text.encode()]

    merges = [("0", ".")] + [("0.", str(i)) for i in range(10)]
    merges += [(f"0.{i}", str(j)) for i in range(10) for j in range(10)] + [(",", characters[32])]
    syllables = [visible(syllable) for syllable in SYLLABLES]
    merges += list(dict.fromkeys((a, b) for a, b, _ in syllables)) + [(a + b, c) for a, b, c in syllables]

    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    named = [
        f"{space}{word}{plural}" for word in (*COLOURS, *SHAPES) for space in ("", " ") for plural in ("", "s")
    ] * 6
    counts = Counter(tuple(visible(piece)) for text in corpus() + named for piece, _ in split.pre_tokenize_str(text))
    words = {word: n for word, n in counts.items() if word[-1].islower() or len(word) > 1}
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, n in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += n
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = {_merged(word, best): n for word, n in words.items()}
    return merges


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for token in word:
        if out and (out[-1], token) == pair:
            out[-1] += token
        else:
            out.append(token)
    return tuple(out)


def build() -> Tokenizer:
    """Return the tokenizer; its last vocabulary row stays unused."""
    tokens = list(byte_characters().values())
    merges = _merges(VOCAB_SIZE - 1 - len(SPECIAL) - len(tokens))
    vocabulary = {token: i for i, token in enumerate(tokens + [a + b for a, b in merges])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    assert tokenizer.get_vocab_size() == VOCAB_SIZE - 1, f"Bug: {tokenizer.get_vocab_size()} tokens"
    return tokenizer


def save(folder: Path) -> Tokenizer:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer = build()
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": IM_END,
        "pad_token": PAD,
        "additional_special_tokens": [token for token in SPECIAL if token not in (IM_END, PAD)],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE + "\n", encoding="utf-8")
    return tokenizer
