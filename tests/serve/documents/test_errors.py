"""Errors in OpenAI's envelope."""

from __future__ import annotations

import pytest

from varco_serve.documents.errors import RequestError, envelope
from varco_serve.messages import Failed


def test_a_request_error_keeps_what_it_says() -> None:
    error = RequestError("n is 5.", code="c", param="n")
    document = {"error": {"message": "n is 5.", "type": "invalid_request_error", "param": "n", "code": "c"}}
    assert envelope(error) == (400, document, {})


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_a_failed_answer_is_told_by_its_status(status: int, kind: str) -> None:
    given, document, headers = envelope(Failed(status, "No.", "c", "p"))
    assert (given, headers) == (status, {})
    assert document == {"error": {"message": "No.", "type": kind, "param": "p", "code": "c"}}


@pytest.mark.parametrize(("wait_s", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (30.0, "30")])
def test_retry_after_is_whole_seconds_and_never_none_at_all(wait_s: float, header: str) -> None:
    assert envelope(Failed(429, "Full.", retry_after_s=wait_s))[2] == {"retry-after": header}
    assert envelope(RequestError("Full.", status=503, retry_after_s=wait_s))[2] == {"retry-after": header}
