"""What the routes that ask the model share: reading a request, decoding its pictures, asking."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from starlette.types import Scope

from varco_serve.documents.chat import ChatRequest
from varco_serve.documents.errors import RequestError
from varco_serve.documents.native import NativeRequest
from varco_serve.front.admission import Admission, num_slots
from varco_serve.front.asks import Asks
from varco_serve.front.decoding import Decoding
from varco_serve.front.limits import FrontLimits
from varco_serve.front.observer import Observer
from varco_serve.front.record import record_of
from varco_serve.messages import Ask, Model
from varco_serve.settings import ServeSettings

SMALL_BYTES = 64 << 10
"""What is parsed within the event loop, in less than a millisecond; more goes to a thread."""
Parsed = TypeVar("Parsed")


class Service:
    """The model as the routes see it.

    Args:
        settings: The server's options.
        limits: Its bounds.
        model: What answers.
        admission: Who is let in.
        observer: What is told of every event.
    """

    def __init__(
        self, settings: ServeSettings, limits: FrontLimits, model: Model, admission: Admission, observer: Observer
    ) -> None:
        self.settings = settings
        self.limits = limits
        self.model = model
        self.admission = admission
        self.observer = observer
        self._decoding = Decoding(model, lambda: num_slots(model), settings.queue_timeout_s)
        # One: what a large request takes while it is parsed is taken once.
        self._parser = ThreadPoolExecutor(1, "varco-parser")

    async def parsed(self, parse: Callable[[], Parsed], num_bytes: int) -> Parsed:
        """Return what a parser makes of a request, without holding up other requests.

        Args:
            parse: Parses it.
            num_bytes: Of the request.
        """
        if num_bytes <= SMALL_BYTES:
            return parse()
        return await asyncio.get_running_loop().run_in_executor(self._parser, parse)

    def ask(self, scope: Scope, request: ChatRequest | NativeRequest, n: int = 1) -> Asks:
        """Return the answers to a request's question, to be entered as a context. They differ in their seed alone.

        Args:
            scope: ASGI's description of the request.
            request: What it asks for.
            n: How many answers.
        """
        record = record_of(scope)
        if self.settings.log_content:
            asked = [{"role": turn.role, "parts": [_logged(part) for part in turn.parts]} for turn in request.turns]
            record.content = {"asked": asked, "answers": []}
        hold = self._decoding.hold(scope["varco.share"])

        async def prepare() -> list[Ask]:
            pictures = await self._decoding.decoded(request.pictures, request.picture_params, hold)
            ask = Ask(request.turns, pictures, request.options, request.grammar)
            return [replace(ask, options=seeded) for seeded in _seeded(request.options, n)]

        return Asks(self.model, n, prepare, hold.let_go, self.observer, record)


def _seeded(options: dict[str, Any], n: int) -> list[dict[str, Any]]:
    seed = options.get("seed")
    return [options if seed is None else {**options, "seed": seed + index} for index in range(n)]


def _logged(part: str | int) -> str:
    return part if isinstance(part, str) else f"<picture {part}>"


def ignored_header(ignored: Sequence[str]) -> dict[str, str]:
    """Return the header field that names what of a request changes nothing, none where there is nothing."""
    return {"varco-ignored": ", ".join(ignored)} if ignored else {}


def media_type(scope: Scope) -> str:
    """Return a request's content type without parameters, in lower case; empty where it has none or several."""
    values = [value for name, value in scope["headers"] if name == b"content-type"]
    return values[0].decode("latin-1").partition(";")[0].strip().lower() if len(values) == 1 else ""


def check_is_json(scope: Scope) -> None:
    """Check that a request says that its body is JSON: a page in a browser may send anything else unasked.

    Args:
        scope: ASGI's description of it.

    Raises:
        RequestError: 415.
    """
    if media_type(scope) != "application/json":
        raise RequestError(
            "The body must be JSON. Send the header: Content-Type: application/json",
            status=415,
            code="unsupported_media_type",
        )
