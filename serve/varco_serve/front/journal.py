"""The log: one line of JSON per request. It holds no prompt, answer, picture or key; `--log-content` adds texts."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from varco_serve.front.record import Record
from varco_serve.traces import places_of

LOGGER = "varco_serve.requests"
_MAX_PLACES = 20
_log = logging.getLogger(LOGGER)


def line_of(record: Record, total_s: float) -> dict[str, Any]:
    """Return what the log says about a request that has ended.

    Args:
        record: The request's.
        total_s: How long it took.
    """
    line: dict[str, Any] = {
        "id": record.request_id,
        "method": record.method,
        "route": record.route or None,
        "status": record.status,
        "stream": record.is_stream,
        "reason": record.reason,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "queue_s": _rounded(record.queue_s),
        "ttft_s": _rounded(record.ttft_s),
        "total_s": _rounded(total_s),
    }
    if record.content is not None:
        line["content"] = record.content
    return line


def write_line(record: Record, total_s: float) -> None:
    """Log a request that has ended."""
    _write(line_of(record, total_s))


def write_failure(record: Record, error: BaseException) -> None:
    """Log what was not foreseen: the kind of the error and where it was raised, not its text, which may be a prompt.

    Args:
        record: Of the request that failed.
        error: What was raised.
    """
    _write({"id": record.request_id, "failure": type(error).__name__, "at": places_of(error, _MAX_PLACES)})


def write_event(event: str, **fields: Any) -> None:
    """Log what happened to the server as a whole, a process that ended for example.

    Args:
        event: Its name.
        **fields: What JSON can hold, no texts of callers.
    """
    _write({"event": event, **fields})


def _write(document: dict[str, Any]) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    _log.info("%s", json.dumps({"time": now, **document}))


def log_to_stderr() -> None:
    """Write the log to stderr; what cannot be written, on a full disk, is lost without harm."""
    handler = _Quiet(sys.stderr)
    _log.handlers, _log.propagate = [handler], False
    _log.setLevel(logging.INFO)


class _Quiet(logging.StreamHandler[Any]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
