"""The server's ASGI app: its routes, behind everything that every request passes."""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from varco_runtime import __version__
from varco_serve.documents.native import TASKS
from varco_serve.front.admission import Admission
from varco_serve.front.body import BodyBounds, Budget
from varco_serve.front.chat_route import ChatRoute
from varco_serve.front.guard import Guard
from varco_serve.front.info_routes import Info, document_route, text_route
from varco_serve.front.journal import write_line
from varco_serve.front.limits import FrontLimits
from varco_serve.front.metrics import CONTENT_TYPE, Metrics
from varco_serve.front.native_route import NativeRoute
from varco_serve.front.observer import Observer
from varco_serve.front.openapi import openapi
from varco_serve.front.record import Record
from varco_serve.front.router import Router
from varco_serve.front.service import Service
from varco_serve.front.watch import Watch
from varco_serve.messages import Model
from varco_serve.settings import ServeSettings


class Front:
    """The ASGI app of one server. `create_app` makes it; `paths` are those of its routes.

    Args:
        settings: The server's options.
        model: What answers.
        limits: Bounds that no option changes.
    """

    def __init__(self, settings: ServeSettings, model: Model, limits: FrontLimits) -> None:
        admission = Admission(model, settings.max_queue)
        self._observer = Observer(Metrics(model, admission), time.monotonic)
        routes = _routes(settings, limits, Service(settings, limits, model, admission, self._observer))
        self.paths = frozenset(routes)
        guarded = Guard(Router(routes), settings)
        self._app = Watch(guarded, settings.request_timeout_s, time.monotonic, self._ended)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    @property
    def num_running(self) -> int:
        """Return how many requests are under way."""
        return self._app.num_running

    async def until_idle(self) -> None:
        """Wait until no request is under way, for a server that takes no more questions."""
        while self.num_running:
            await asyncio.sleep(0.02)

    def _ended(self, record: Record, total_s: float) -> None:
        self._observer.ended(record, total_s)
        write_line(record, total_s)


def create_app(settings: ServeSettings, model: Model, limits: FrontLimits | None = None) -> Front:
    """Return the server's ASGI app.

    Args:
        settings: The server's options.
        model: What answers.
        limits: Bounds that no option changes; by default those of `FrontLimits`.
    """
    return Front(settings, model, limits or FrontLimits())


def _routes(settings: ServeSettings, limits: FrontLimits, service: Service) -> dict[str, dict[str, ASGIApp]]:
    budget = Budget(limits.max_held_bytes)
    asking: dict[str, ASGIApp] = {"/v1/chat/completions": ChatRoute(service)}
    asking |= {f"/v1/{task}": NativeRoute(service, task) for task in TASKS}
    description = openapi(__version__, bool(settings.keys))
    info = Info(settings, limits, service.model, int(time.time()))
    return {
        "/health": {"GET": document_route(info.ready)},
        "/health/live": {"GET": document_route(info.live)},
        "/health/ready": {"GET": document_route(info.ready)},
        "/openapi.json": {"GET": document_route(lambda: (200, description))},
        "/metrics": {"GET": text_route(service.observer.metrics.text, CONTENT_TYPE)},
        "/v1/models": {"GET": document_route(info.models)},
        "/v1/metadata": {"GET": document_route(info.metadata)},
        **{path: {"POST": BodyBounds(route, limits, budget)} for path, route in asking.items()},
    }
