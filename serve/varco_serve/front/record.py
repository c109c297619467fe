"""What is known about one request: filled on its way, read by the log line and the metrics."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

_NO_SNIFF = (b"x-content-type-options", b"nosniff")
"""Browsers take texts of pictures for what they are said to be."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class Record:
    """One request on its way.

    Args:
        request_id: The caller's `x-request-id`, or one that was made.
        start_s: When it came, by the server's clock.
        method: As sent, where it is one of HTTP's; else `other`.
        route: The path of the route that took it; empty where none did, so that no log holds what a caller made up.
        status: Of the answer; 0 before one, 499 where the caller left first.
        reason: The answer's finish reason, or why there is none.
        has_failed: Whether it ended otherwise than its caller wanted.
        is_stream: Whether the answer is sent as it is made.
        queue_s: From the question to its place in the worker.
        ttft_s: From the request's first byte to the answer's.
        prompt_tokens: Of the prompts.
        completion_tokens: Of the answers.
        content: Prompts and answers, where the log may hold them.
        headers: Header fields that every answer to it carries.
        error_event: Turns an error's document into an event, once a stream has begun.
    """

    request_id: str
    start_s: float
    method: str = "other"
    route: str = ""
    status: int = 0
    reason: str | None = None
    has_failed: bool = False
    is_stream: bool = False
    queue_s: float | None = None
    ttft_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    content: dict[str, Any] | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    error_event: Callable[[dict[str, Any]], bytes] | None = None


_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}


def new_record(scope: Scope, start_s: float) -> Record:
    """Return the record of a request that has just come.

    Args:
        scope: ASGI's description of it.
        start_s: When it came.
    """
    given = [value for name, value in scope["headers"] if name == b"x-request-id"]
    text = given[0].decode("latin-1") if len(given) == 1 else ""
    request_id = text if _ID.fullmatch(text) else uuid.uuid4().hex
    method = scope["method"] if scope["method"] in _METHODS else "other"
    return Record(request_id, start_s, method, headers=[(b"x-request-id", request_id.encode()), _NO_SNIFF])


def record_of(scope: Scope) -> Record:
    """Return the record that `Watch` put into a request's scope."""
    record = scope["varco.record"]
    assert isinstance(record, Record), "Bug: a request came past Watch."
    return record
