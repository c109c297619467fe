"""A JSON schema as llguidance's grammar: bounds first, then how its answers are written."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any

from llguidance import LLMatcher

from varco_serve.grammar.errors import GrammarError

MAX_SCHEMA_BYTES = 128 << 10
"""References that lead to each other are followed to their depth, for which a compiling thread has stack enough."""
MAX_MULTIPLE_OF = 20_000
"""Of all `multipleOf` in a schema together, decimals as whole numbers: each is an automaton of so many states."""

WRITTEN = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',
    "coerce_one_of": False,
    "lenient": False,
}
"""As Python writes JSON, on one line: where white space is free, a model may go on with it for ever. `\\u` could say
half a surrogate pair; characters stand for themselves."""


def schema_grammar(schema: Any) -> str:
    """Return the grammar of answers that a JSON schema accepts.

    Args:
        schema: What `json.loads` gives for it: an object, or a truth value.

    Raises:
        GrammarError: It is no schema, or beyond the bounds. What llguidance does not support shows when it is compiled.
    """
    if not isinstance(schema, dict | bool):
        raise GrammarError(f"The JSON schema is of type {type(schema).__name__}, expected an object. Send one.")
    if isinstance(schema, dict):  # llguidance's own options, which would undo those here
        schema = {key: value for key, value in schema.items() if key != "x-guidance"}
    else:
        schema = {} if schema else {"not": {}}
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise GrammarError("The JSON schema is no JSON, expected no NaN and few levels. Change the schema.") from None
    if len(text) > MAX_SCHEMA_BYTES:
        raise GrammarError(
            f"The JSON schema has {len(text):,} bytes, expected at most {MAX_SCHEMA_BYTES:,}. Send a smaller one."
        )
    total = sum(_multiples(schema))
    if total > MAX_MULTIPLE_OF:
        raise GrammarError(
            f"The JSON schema has multipleOf of {total:,} together, decimals counted as whole numbers, expected at "
            f"most {MAX_MULTIPLE_OF:,}. Leave multipleOf out."
        )
    try:
        grammar: str = LLMatcher.grammar_from_json_schema(text, overrides=WRITTEN)  # type: ignore[arg-type]
    except ValueError:  # lone surrogates
        raise GrammarError("The JSON schema holds a lone surrogate, expected Unicode text. Remove it.") from None
    return grammar


def _multiples(schema: Any) -> list[int]:
    """Return the digits of every `multipleOf` in a schema, without its point, wherever it stands."""
    found, todo = [], [schema]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            value = part.get("multipleOf")
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.append(_whole(value))
            todo += part.values()
        elif isinstance(part, list):
            todo += part
    return found


def _whole(value: float) -> int:
    """Return 137 for 0.0137, and for all that is too large for an automaton one more than the bound."""
    try:
        _, digits, exponent = Decimal(str(value)).normalize().as_tuple()
    except InvalidOperation:
        return MAX_MULTIPLE_OF + 1
    if len(digits) > 6 or not isinstance(exponent, int) or exponent > 6:
        return MAX_MULTIPLE_OF + 1
    whole: int = int("".join(map(str, digits))) * 10 ** max(exponent, 0)
    return whole
