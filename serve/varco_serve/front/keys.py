"""Keys: who may ask."""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import parse_qsl

from starlette.types import Scope

from varco_serve.documents.errors import RequestError

_SCHEME = b"bearer "
_IN_QUERY = {"key", "api_key", "api-key", "apikey", "access_token", "token", "authorization"}


class KeyCheck:
    """Refuses requests without a key in `Authorization: Bearer KEY`.

    Args:
        digests: SHA-256 digests of the keys; none lets everybody in.
        open_paths: Paths that ask for none.
    """

    def __init__(self, digests: tuple[bytes, ...], open_paths: frozenset[str]) -> None:
        self._digests = digests
        self._open_paths = open_paths

    def __call__(self, scope: Scope) -> None:
        """Check a request. `scope["path"]` decides, which is what the router takes too.

        Raises:
            RequestError: 401.
        """
        if not self._digests or scope["path"] in self._open_paths:
            return
        # The address is part of the header, which is bounded.
        fields = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if any(name.lower() in _IN_QUERY for name, _ in fields):
            raise _refused("A key in the address would end in logs. Send the header: Authorization: Bearer KEY")
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1 or given[0][: len(_SCHEME)].lower() != _SCHEME:
            raise _refused("This server asks for a key. Send the header: Authorization: Bearer KEY")
        digest = hashlib.sha256(given[0][len(_SCHEME) :].strip()).digest()
        # All are compared, so that the time says nothing about which was nearly right.
        if not sum(hmac.compare_digest(digest, known) for known in self._digests):
            raise _refused("The key is not one of this server's.")


def _refused(message: str) -> RequestError:
    return RequestError(message, status=401, code="invalid_api_key", kind="authentication_error")
