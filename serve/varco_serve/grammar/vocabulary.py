"""The model's vocabulary as llguidance takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llguidance

from varco_runtime.prompt.tokenizer import Tokenizer

_IN_TEXT = r'[^"\\<\x00-\x1F\x7F]'
SLICES = (_IN_TEXT + "{1,10}", _IN_TEXT + "{1,30}", _IN_TEXT + "+", r'[^"\\\x00-\x1F\x7F]+')
"""Sets of tokens that are allowed or not as a whole, without a look at each: llguidance's own for the strings of JSON,
without `<`, so that they serve text between the tags of markup too. Ten times as fast there."""


def ll_tokenizer(tokenizer: Tokenizer, eos_token_ids: Sequence[int], vocab_size: int) -> llguidance.LLTokenizer:
    """Return a tokenizer for llguidance.

    Added tokens stand for themselves alone: no grammar of text lets them through, whatever their characters are.

    Args:
        tokenizer: The bundle's.
        eos_token_ids: What ends an answer, at least one.
        vocab_size: The rows of the model's logits. Those without a token are in no mask.
    """
    wrapper: Any = _Wrapper(tokenizer, eos_token_ids[0], vocab_size)
    made = llguidance.LLTokenizer(wrapper, n_vocab=vocab_size, eos_token=list(eos_token_ids), slices=list(SLICES))
    wrapper.tokens = []  # it has its own copies, and keeps the wrapper
    return made


class _Wrapper:
    """What `llguidance.TokenizerWrapper` is to llguidance: bytes of tokens, and a way to encode text."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, eos_token_id: int, vocab_size: int) -> None:
        self._encode = tokenizer.encode_plain
        self.eos_token_id = eos_token_id
        self.special_token_ids = [id_ for id_ in tokenizer.added_token_ids.values() if id_ < vocab_size]
        self.tokens = [tokenizer.token_bytes(id_) for id_ in range(vocab_size)]

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)
