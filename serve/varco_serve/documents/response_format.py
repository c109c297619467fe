"""OpenAI's `response_format` -> what an answer must look like, as `messages.Ask.grammar` says it."""

from __future__ import annotations

from typing import Any

from varco_serve.documents.errors import RequestError
from varco_serve.documents.fields import Fields, has_surrogate

MAX_SCHEMA_VALUES = 20_000
"""Objects, lists, texts and numbers of a schema. What they mean is bounded where they are compiled."""
MAX_SCHEMA_CHARS = 1 << 18
MAX_SCHEMA_DEPTH = 64


def grammar_of(fields: Fields, ignored: list[str]) -> dict[str, Any] | None:
    """Return the grammar that a request's `response_format` asks for; None for any answer.

    Args:
        fields: The request's.
        ignored: Takes the names of fields that change nothing.

    Raises:
        RequestError: It is unknown, or its schema is none or too large.
    """
    asked = fields.inner("response_format")
    if asked is None:
        return None
    kind = asked.choice("type", "text", "json_object", "json_schema")
    if kind is None:
        raise asked.refused("type", None, "one of text, json_object, json_schema")
    if kind == "json_schema":
        described = asked.inner("json_schema")
        if described is None:
            raise asked.refused("json_schema", None, "an object with a name and a schema")
        described.take("name"), described.take("strict")  # every schema is held to
        grammar = {"kind": kind, "schema": _schema(described)}
        ignored += [described.path(name) for name in described.rest()]
    elif kind == "json_object":
        # Others' servers take a schema here too.
        has_schema = asked.take("schema") is not None
        grammar = {"kind": "json_schema", "schema": _schema(asked)} if has_schema else {"kind": kind}
    ignored += [asked.path(name) for name in asked.rest()]
    return None if kind == "text" else grammar


def _schema(fields: Fields) -> dict[str, Any]:
    schema = fields.take("schema")
    if not isinstance(schema, dict):
        raise fields.refused("schema", schema, "an object, a JSON schema")
    problem = _too_large(schema)
    if problem is not None:
        path = fields.path("schema")
        raise RequestError(f"{path} has {problem}.", param=path)
    return schema


def _too_large(schema: dict[str, Any]) -> str | None:
    """Return what a schema has too much of, or None; stops where it knows."""
    num_values = num_chars = 0
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        below: list[Any] = []
        for value in level:
            num_values += 1
            if isinstance(value, str):
                num_chars += len(value)
                if has_surrogate(value):
                    return "half a character (a lone surrogate), expected Unicode text"
            elif isinstance(value, dict):
                below += value
                below += value.values()
            elif isinstance(value, list):
                below += value
            if num_values + len(below) > MAX_SCHEMA_VALUES:
                return f"more than {MAX_SCHEMA_VALUES:,} values, expected fewer"
            if num_chars > MAX_SCHEMA_CHARS:
                return f"more than {MAX_SCHEMA_CHARS:,} characters, expected fewer"
        level = below
    return f"more than {MAX_SCHEMA_DEPTH} levels, expected fewer" if level else None
