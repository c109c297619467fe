"""The header Host and the request's target: which names this server answers to.

A page on another site can reach a server on loopback through a name that its owner points there (DNS rebinding); the
browser then sends that name as Host. An address in place of a name cannot be pointed elsewhere.
"""

from __future__ import annotations

import ipaddress
import re

from starlette.types import Scope

from varco_serve.documents.errors import RequestError
from varco_serve.settings import LOCALHOST, is_loopback

_LOOPBACK = (LOCALHOST, "127.0.0.1", "::1")
_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


class HostCheck:
    """Refuses requests to names that are not this server's.

    Args:
        host: The address it listens on.
        allowed: Further names; a port behind one says nothing, for a proxy has another.
    """

    def __init__(self, host: str, allowed: tuple[str, ...]) -> None:
        self._names = {*_LOOPBACK, host.lower(), *(_name(one) for one in allowed)}
        self._any_address = not is_loopback(host)

    def __call__(self, scope: Scope) -> None:
        """Check a request.

        Args:
            scope: ASGI's description of it.

        Raises:
            RequestError: 400 for a target or a Host that is none, 403 for a name that is not allowed.
        """
        if not scope["path"].startswith("/"):
            raise RequestError("The request's target is no path. Send a path that begins with '/'.")
        values = [value for name, value in scope["headers"] if name == b"host"]
        name = _name(values[0].decode("latin-1")) if len(values) == 1 else None
        if name is None:
            raise RequestError("The header Host is missing or is no host name, with or without a port.")
        if name in self._names or (self._any_address and _is_address(name)):
            return
        raise RequestError(
            "The name in the header Host is not one of this server's. Start it with --allowed-host NAME to allow it.",
            status=403,
            code="host_not_allowed",
        )


def _name(host: str) -> str | None:
    """Return the name or address of a host and port, in lower case; None where there is none."""
    match = _HOST.fullmatch(host)
    return None if match is None else match["name"].strip("[]").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
