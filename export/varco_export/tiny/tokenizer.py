"""A byte-level BPE of some 480 tokens with VARCO's markup tokens, made by hand, and its chat template."""

from __future__ import annotations

from pathlib import Path

from varco_export.config.tokenizer_file import byte_level, qwen_tokenizer
from varco_export.writing.json_file import write_json

SPECIAL_TOKENS: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "[UNK]",
    "<gro>",
    "<ocr>",
    "<char>",
    "</char>",
)
SPECIAL_TOKENS += ("<obj>", "</obj>", "<bbox>", "</bbox>", "<delim>", "<image>")
VIDEO_TOKENS = (*SPECIAL_TOKENS[:4], "<image>", "<video>")
"""Those of a model for several pictures and videos: VARCO's markup tokens would say that it was trained on one."""

# Words that get a token of their own, and on the way there one for each of their beginnings.
_WORDS = (
    "system user assistant picture image text What is in the this Describe You about and of how many colour "
    "대한민국 수도 사진 글자 고양이"
)

# ChatML. Message content may be a string or a list of parts; pictures come before the text of their turn.
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou look at pictures and answer questions about them.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}
{{- '<image>\\n' -}}
{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- part['text'] -}}{%- endgeneration -%}
{%- else -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

_VIDEO_LOOP = """\
{%- for part in message['content'] if part['type'] == 'video' -%}
{{- '<video>\\n' -}}
{%- endfor -%}
"""
_TEXT_LOOP = "{%- for part in message['content'] if part['type'] == 'text' -%}\n"
VIDEO_CHAT_TEMPLATE = CHAT_TEMPLATE.replace(_TEXT_LOOP, _VIDEO_LOOP + _TEXT_LOOP)
"""The same with videos between pictures and text, as llava-hf's template has them."""


def token_ids(video: bool = False) -> dict[str, int]:
    """Return every token of the tokenizer and its id: bytes, merges, then the special tokens.

    Args:
        video: Whether it has `<video>`, and no markup tokens.
    """
    vocab = _bpe()[0]
    special = VIDEO_TOKENS if video else SPECIAL_TOKENS
    return vocab | {token: len(vocab) + number for number, token in enumerate(special)}


def _bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a byte-level BPE: the 256 bytes, and merges that build the words of `_WORDS` from left to right."""
    letters = _byte_letters()
    vocab = {letter: number for number, letter in enumerate(letters)}
    merges: list[tuple[str, str]] = []
    for word in _WORDS.split():
        for spelled in (word, " " + word):
            pieces = [letters[byte] for byte in spelled.encode()]
            left = pieces[0]
            for right in pieces[1:]:
                if left + right not in vocab:
                    vocab[left + right] = len(vocab)
                    merges.append((left, right))
                left += right
    return vocab, merges


def _byte_letters() -> list[str]:
    """Return the printable letter that byte-level BPE writes for each byte.

    Source: GPT-2's encoder, `bytes_to_unicode`.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def write_tokenizer(folder: Path, max_length: int, with_image_token: bool, as_files: bool, video: bool = False) -> None:
    """Write the tokenizer's files.

    Args:
        folder: Where to.
        max_length: The model's maximum, as tokenizer_config.json tells it.
        with_image_token: Whether `<image>` is a token, as in transformers' format.
        as_files: Whether to write vocab.json and merges.txt instead of tokenizer.json.
        video: Whether it is for several pictures and videos.
    """
    vocab, merges = _bpe()
    ids = token_ids(video)
    every = VIDEO_TOKENS if video else SPECIAL_TOKENS
    # LLaVA-NeXT has no such tokens: it cuts its prompt at <image>.
    special = every if with_image_token else tuple(token for token in every if token not in ("<image>", "<video>"))
    added = [
        {"id": ids[token], "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for token in special
    ]  # fmt: skip
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
            },
            "additional_special_tokens": [token for token in special if token.startswith("<") and "|" not in token],
            "bos_token": None,
            "chat_template": VIDEO_CHAT_TEMPLATE if video else CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": max_length,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": "[UNK]",
        },
    )
    if as_files:
        write_json(folder / "vocab.json", vocab)
        lines = "".join(f"{left} {right}\n" for left, right in merges)
        (folder / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
        write_json(folder / "added_tokens.json", {token: ids[token] for token in special})
        return
    letters = byte_level(add_prefix_space=False, trim_offsets=False)
    pairs = [list(pair) for pair in merges]
    document = qwen_tokenizer(vocab, pairs, letters, post_processor=letters, decoder=letters, added_tokens=added)
    write_json(folder / "tokenizer.json", document)
