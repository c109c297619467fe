"""The header Origin: which pages in a browser may ask."""

from __future__ import annotations

import re

from starlette.types import Scope

from varco_serve.documents.errors import RequestError

_HEADER_NAMES = re.compile(rb"[A-Za-z0-9, -]{0,1024}")
_EXPOSED = b"retry-after, varco-ignored, x-request-id"
Headers = list[tuple[bytes, bytes]]


class OriginCheck:
    """Refuses pages of other sites. Programs that are no browser send no Origin and pass.

    Args:
        allowed: Origins such as `https://chat.example.org`.
    """

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._allowed = {origin.rstrip("/").lower() for origin in allowed}

    def __call__(self, scope: Scope) -> Headers:
        """Check a request, whose Host has been checked, and return what its answer says to a browser.

        Args:
            scope: ASGI's description of it.

        Raises:
            RequestError: 403, the page is of a site that is not allowed.
        """
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        if not origins:
            return [(b"vary", b"origin")] if self._allowed else []
        origin = origins[0].decode("latin-1").lower()
        host = next(value for name, value in scope["headers"] if name == b"host").decode("latin-1").lower()
        if len(origins) == 1 and origin in (f"http://{host}", f"https://{host}"):
            return []
        if len(origins) == 1 and origin in self._allowed:
            return [
                (b"access-control-allow-origin", origins[0]),
                (b"access-control-expose-headers", _EXPOSED),
                (b"vary", b"origin"),
            ]
        raise RequestError(
            "Pages of this origin may not ask. Start the server with --cors ORIGIN to allow one.",
            status=403,
            code="origin_not_allowed",
        )


def preflight(scope: Scope) -> Headers | None:
    """Return what a browser's question before a request is answered with, or None where it is none.

    Args:
        scope: ASGI's description of a request whose origin has been allowed.
    """
    fields = dict(scope["headers"])
    if scope["method"] != "OPTIONS" or b"origin" not in fields or b"access-control-request-method" not in fields:
        return None
    names = fields.get(b"access-control-request-headers", b"")
    return [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", names if _HEADER_NAMES.fullmatch(names) else b"authorization, content-type"),
        (b"access-control-max-age", b"600"),
    ]
