"""What goes back where no document of an answer does: errors as OpenAI's envelope."""

from __future__ import annotations

from starlette.responses import JSONResponse

from varco_serve.documents.errors import RequestError, envelope
from varco_serve.messages import Failed


def error_response(error: RequestError | Failed) -> JSONResponse:
    """Return an error as an HTTP answer: status, OpenAI's envelope, `Retry-After` where it is worth asking again.

    Args:
        error: What is wrong with the request, or what the worker said.
    """
    status, document, headers = envelope(error)
    if status == 401:
        headers = {**headers, "www-authenticate": "Bearer"}
    if status == 504:
        # OpenAI's clients ask again by themselves after any 5xx; what took too long would take as long again.
        headers = {**headers, "x-should-retry": "false"}
    return JSONResponse(document, status, headers)
