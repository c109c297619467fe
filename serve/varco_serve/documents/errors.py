"""What is wrong with a request, and the envelope in which OpenAI's clients look for it."""

from __future__ import annotations

import math
from typing import Any

from varco_serve.messages import Failed

INVALID = "invalid_request_error"


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        message: One line: what, got, expected, next step.
        status: The HTTP status.
        code: OpenAI's short name of the error, or None.
        param: The field at fault, as `messages[3].content[1].image_url.url`, or None.
        kind: OpenAI's name for errors of this sort.
        retry_after_s: When it is worth asking again, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        kind: str = INVALID,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.kind = kind
        self.retry_after_s = retry_after_s


def envelope(error: Failed | RequestError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return an error as HTTP says it: status, OpenAI's document, header fields.

    Args:
        error: What is wrong with the request, or why the worker gave no answer.
    """
    kind = error.kind if isinstance(error, RequestError) else _kind(error.status)
    document = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    wait_s = error.retry_after_s
    headers = {} if wait_s is None else {"retry-after": str(max(1, math.ceil(wait_s)))}
    return error.status, {"error": document}, headers


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else INVALID
