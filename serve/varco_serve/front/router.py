"""Which route takes a request: its path, to the letter, then its method."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from varco_serve.documents.errors import RequestError
from varco_serve.front.record import record_of


class Router:
    """An ASGI app of routes without parameters in their paths.

    Args:
        routes: What takes each method of each path; GET takes HEAD too.
    """

    def __init__(self, routes: Mapping[str, Mapping[str, ASGIApp]]) -> None:
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        methods = self._routes.get(scope["path"])
        if methods is None:
            raise RequestError(
                "There is no such route. /openapi.json names those there are.", status=404, code="not_found"
            )
        record = record_of(scope)
        record.route = scope["path"]
        route = methods.get("GET" if scope["method"] == "HEAD" else scope["method"])
        if route is None:
            allowed = ", ".join(sorted({*methods, "HEAD"} if "GET" in methods else methods))
            record.headers.append((b"allow", allowed.encode()))
            raise RequestError(
                f"This route takes {allowed} and not the request's method.", status=405, code="method_not_allowed"
            )
        await route(scope, receive, send)
