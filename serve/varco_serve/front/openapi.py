"""`/openapi.json`: every route with every status it answers."""

from __future__ import annotations

from typing import Any

from varco_serve.documents.native import TASKS
from varco_serve.front import schemas

Document = dict[str, Any]

_MEANINGS = {
    400: "The request is malformed, asks for what is not supported, or is longer than the context.",
    401: "No key, a wrong one, or one in the address.",
    403: "A Host or an Origin that is not allowed.",
    404: "No such model.",
    408: "The body came too slowly.",
    413: "The body is too long.",
    415: "The body is of a kind that is not taken.",
    429: "The queue is full, or too many grammars are being compiled.",
    500: "A fault of the server; its log says more.",
    503: "The model is being loaded or started again, the server ends, or its memory is full.",
    504: "The answer was not complete in time.",
}
_ASKED = (408, 413, 415, 429, 500, 503, 504)
"""What a route that asks the model answers besides 200 and what every route does."""
_WAITS = (429, 503)


def openapi(version: str, has_keys: bool) -> Document:
    """Return the description of the server's routes.

    Args:
        version: The project's.
        has_keys: Whether the server asks for keys.
    """
    document: Document = {
        "openapi": "3.1.0",
        "info": {"title": "varco-edge", "version": version},
        "paths": {
            "/health": {"get": _health("Whether questions are answered now, and why not.", 503)},
            "/health/live": {"get": _health("That the process answers.")},
            "/health/ready": {"get": _health("Whether questions are answered now, and why not.", 503)},
            "/metrics": {"get": _get("Prometheus metrics.", {"text/plain": {"schema": {"type": "string"}}})},
            "/openapi.json": {"get": _get("This document.", _json({"type": "object"}))},
            "/v1/models": {"get": _get("The model, in OpenAI's list.", _json(schemas.MODELS), 503)},
            "/v1/metadata": {"get": _get("Bundle, precision, device, limits, licence.", _json(schemas.METADATA), 503)},
            "/v1/chat/completions": {"post": _chat()},
            **{f"/v1/{task}": {"post": _native(task)} for task in TASKS},
        },
    }
    if has_keys:
        document["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                if not path.startswith("/health"):
                    operation["security"] = [{"key": []}]
                    operation["responses"]["401"] = _refusal(401)
    return document


def _json(schema: Document) -> Document:
    return {"application/json": {"schema": schema}}


def _refusal(status: int) -> Document:
    refusal: Document = {"description": _MEANINGS[status], "content": _json(schemas.ERROR)}
    if status in _WAITS:
        refusal["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return refusal


def _operation(summary: str, content: Document, *statuses: int) -> Document:
    answered = {"200": {"description": "The answer.", "content": content}}
    refused = {str(status): _refusal(status) for status in sorted((400, 403, *statuses))}
    return {"summary": summary, "responses": answered | refused}


def _get(summary: str, content: Document, *statuses: int) -> Document:
    return _operation(summary, content, *statuses)


def _health(summary: str, *statuses: int) -> Document:
    operation = _operation(summary, _json(schemas.HEALTH), *statuses)
    for status in statuses:
        operation["responses"][str(status)] = {"description": _MEANINGS[status], "content": _json(schemas.HEALTH)}
    return operation


def _asking(summary: str, request: Document, content: Document, *statuses: int) -> Document:
    operation = _operation(summary, content, *_ASKED, *statuses)
    operation["responses"]["200"]["headers"] = {"varco-ignored": {"schema": {"type": "string"}}}
    return operation | {"requestBody": {"required": True, "content": request}}


def _events() -> Document:
    """Return the kind of a stream; its schema is that of one event."""
    text = {"type": "string"}
    return {"text/event-stream": {"schema": {"type": "object", "properties": {"event": text, "data": text}}}}


def _chat() -> Document:
    return _asking(
        "OpenAI's chat completions.", _json(schemas.CHAT_REQUEST), _json(schemas.CHAT_ANSWER) | _events(), 404
    )


def _native(task: str) -> Document:
    pictures: Document = {f"image/{kind}": {"schema": {}} for kind in ("png", "jpeg", "webp", "gif", "bmp")}
    content = _json({"anyOf": [schemas.NATIVE_ANSWER, schemas.COCO]}) | _events()
    content |= {kind: {"schema": {"type": "string"}} for kind in ("text/plain", "application/xhtml+xml")}
    operation = _asking(f"VARCO's task {task}.", pictures | _json(schemas.NATIVE_REQUEST), content)
    return operation | {
        "parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in _fields(task).items()]
    }


def _fields(task: str) -> dict[str, Document]:
    """Return what may stand in a task's address; a body of JSON may hold the same."""
    left_out = {"ocr": ("prompt", "text"), "ground": ("text",), "refer": ()}[task]
    fields = {name: schema for name, schema in schemas.NATIVE_FIELDS.items() if name not in (*left_out, "logit_bias")}
    return fields | ({"box": {"type": "string"}} if task == "refer" else {})
