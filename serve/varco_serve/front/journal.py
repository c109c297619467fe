"""The log: one line of JSON per request, without prompts, answers, pictures or keys unless `--log-content` asks for them."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from varco_serve.front.record import Record

LOGGER = "varco_serve.requests"
_log = logging.getLogger(LOGGER)


def line_of(record: Record, total_s: float) -> dict[str, Any]:
    """Return what the log says about a request that has ended.

    Args:
        record: The request's.
        total_s: How long it took.
    """
    line = {
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
    _log.info(
        "%s", json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **line_of(record, total_s)})
    )


def log_to_stderr() -> None:
    """Let requests and failures be written to stderr; what cannot be written, on a full disk, is lost without harm."""
    handler = _Quiet(sys.stderr)
    for name in (LOGGER, "varco_serve.front"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


class _Quiet(logging.StreamHandler[Any]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
