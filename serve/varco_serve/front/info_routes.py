"""What the server says about itself: health, models, metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from varco_serve.documents.errors import RequestError
from varco_serve.front.limits import FrontLimits
from varco_serve.messages import Facts, Model
from varco_serve.settings import ServeSettings

RETRY_AFTER_S = 5.0


def facts_of(model: Model) -> Facts:
    """Return what is known about the model.

    Args:
        model: What answers.

    Raises:
        RequestError: 503, it has not been loaded yet.
    """
    if model.facts is None:
        raise _not_ready("loading")
    return model.facts


def check_ready(model: Model) -> Facts:
    """Return what is known about a model that takes questions. One that is started again takes them: they wait for it.

    Args:
        model: What answers.

    Raises:
        RequestError: 503, it is being loaded for the first time, or the server is about to end.
    """
    if model.not_ready == "draining":
        raise _not_ready("draining")
    return facts_of(model)


def _not_ready(reason: str) -> RequestError:
    return RequestError(
        f"The server cannot answer now: {reason}. Try again in a while.",
        status=503,
        code=reason,
        kind="server_error",
        retry_after_s=RETRY_AFTER_S,
    )


def document_route(document: Callable[[], tuple[int, Any]]) -> ASGIApp:
    """Return an ASGI app that answers with a document.

    Args:
        document: Returns the status and the document.
    """

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        status, content = document()
        headers = {"retry-after": f"{RETRY_AFTER_S:g}"} if status == 503 else None
        await JSONResponse(content, status, headers)(scope, receive, send)

    return route


def text_route(text: Callable[[], bytes], content_type: str) -> ASGIApp:
    """Return an ASGI app that answers with a text.

    Args:
        text: Returns it.
        content_type: Of what kind it is.
    """

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(text(), headers={"content-type": content_type})(scope, receive, send)

    return route


class Info:
    """The documents of the routes that ask nothing of the model.

    Args:
        settings: The server's options.
        limits: Its bounds.
        model: What answers.
        created: When the server was started, in seconds since 1970.
    """

    def __init__(self, settings: ServeSettings, limits: FrontLimits, model: Model, created: int) -> None:
        self._settings = settings
        self._limits = limits
        self._model = model
        self._created = created

    def live(self) -> tuple[int, Any]:
        """Return that the process answers."""
        return 200, {"status": "ok"}

    def ready(self) -> tuple[int, Any]:
        """Return whether questions are answered now, and why not."""
        reason = self._model.not_ready
        return (200, {"status": "ready"}) if reason is None else (503, {"status": "not ready", "reason": reason})

    def models(self) -> tuple[int, Any]:
        """Return OpenAI's list of models: the one that is served."""
        facts = facts_of(self._model)
        model = {
            "id": self._settings.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "varco-edge",
            "max_model_len": facts.max_context,
        }
        return 200, {"object": "list", "data": [model]}

    def metadata(self) -> tuple[int, Any]:
        """Return what is served, and its limits."""
        facts = facts_of(self._model)
        limits = {
            "max_context": facts.max_context,
            "slots": facts.slots,
            "max_images": facts.max_images,
            "largest_picture_tokens": facts.largest_picture_tokens,
            "max_body_bytes": self._limits.max_body_bytes,
            "max_queue": self._settings.max_queue,
            "queue_timeout_s": self._settings.queue_timeout_s,
            "request_timeout_s": self._settings.request_timeout_s,
        }
        return 200, {**facts.details, "served_as": self._settings.model_name, "limits": limits}
