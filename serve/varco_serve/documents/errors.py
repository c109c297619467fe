"""STAND-IN, never committed: the agreed names of documents.errors."""

from __future__ import annotations

from typing import Any

from varco_serve.messages import Failed


class RequestError(Exception):
    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.param, self.kind = message, status, code, param, kind
        self.retry_after_s = retry_after_s


def envelope(error: Failed | RequestError) -> tuple[int, dict[str, Any], dict[str, str]]:
    kind = error.kind if isinstance(error, RequestError) else "invalid_request_error"
    headers = {} if error.retry_after_s is None else {"retry-after": str(int(error.retry_after_s))}
    doc = {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
    return error.status, doc, headers
