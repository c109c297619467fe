"""A small vocabulary with a few rows behind it that no token has, its grammars, and walks through them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tests.makers.tiny_tokenizer import tiny_json
from varco_runtime.generation.constraint import Constraint
from varco_runtime.prompt.tokenizer import Tokenizer
from varco_serve.grammar.grammars import Grammars

EOS = ("<|im_end|>", "<|endoftext|>")
NUM_EMPTY_ROWS = 13


@dataclass(frozen=True, slots=True)
class Small:
    """A tokenizer and what goes with it."""

    tokenizer: Tokenizer
    grammars: Grammars
    eos_token_ids: tuple[int, ...]
    vocab_size: int

    def text(self, ids: list[int]) -> str:
        """Return the text of an answer, without its end token and what its last token has of a character."""
        said = ids[:-1] if ids and ids[-1] in self.eos_token_ids else ids
        return b"".join(map(self.tokenizer.token_bytes, said)).decode(errors="ignore")


@dataclass(slots=True)
class Walk:
    """An answer of a model that knows nothing. `masks` has, before each choice, the text so far and what is allowed."""

    ids: list[int] = field(default_factory=list)
    masks: list[tuple[list[int], np.ndarray[Any, Any]]] = field(default_factory=list)
    is_complete: bool = False


def walk(small: Small, constraint: Constraint, seed: int, max_tokens: int = 400, bend: float = 0.5) -> Walk:
    """Choose at random among what is allowed; added tokens, where there are any, with the chance `bend`."""
    rng, taken = np.random.default_rng(seed), Walk()
    added = set(small.tokenizer.added_token_ids.values())
    while len(taken.ids) < max_tokens and not taken.is_complete:
        coming = constraint.forced()
        if coming:
            token = coming[0]
        else:
            allowed = constraint.allowed().copy()
            taken.masks.append((list(taken.ids), allowed))
            ids = np.flatnonzero(allowed)
            tags = [int(id_) for id_ in ids if int(id_) in added]
            token = int(rng.choice(tags if tags and rng.random() < bend else ids))
        constraint.accept(token)
        taken.ids.append(token)
        taken.is_complete = token in small.eos_token_ids
    return taken


@pytest.fixture(scope="session")
def small() -> Small:
    tokenizer = Tokenizer.from_json(tiny_json())
    eos_token_ids = tuple(tokenizer.added_token_ids[content] for content in EOS)
    vocab_size = tokenizer.size + NUM_EMPTY_ROWS
    return Small(tokenizer, Grammars(tokenizer, eos_token_ids, vocab_size), eos_token_ids, vocab_size)


@pytest.fixture(scope="session")
def untagged() -> Small:
    """A model without the tags of VARCO's markup."""
    tokenizer = Tokenizer.from_json(tiny_json(("<|endoftext|>", "<|im_end|>")))
    eos_token_ids = (tokenizer.added_token_ids["<|im_end|>"],)
    return Small(tokenizer, Grammars(tokenizer, eos_token_ids, tokenizer.size), eos_token_ids, tokenizer.size)


def schema(document: Any) -> dict[str, Any]:
    """Return the grammar of a JSON schema, as an ask has it."""
    return {"kind": "json_schema", "schema": document}


def closed(**properties: Any) -> dict[str, Any]:
    """Return the schema of an object with just these properties."""
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False
    }  # fmt: skip
