"""h11's reading of a connection, with the bounds that it leaves to its caller."""

from __future__ import annotations

import h11

MIN_CHUNK_BYTES = 64
"""What a chunk of a body must hold on average, after `FREE_CHUNKS`: each costs the same time, however small it is."""
FREE_CHUNKS = 2048


class BoundedConnection(h11.Connection):
    """One client's connection.

    Args:
        max_header_bytes: Of a request's line and header fields. h11 itself bounds only a header that is incomplete.
    """

    def __init__(self, max_header_bytes: int) -> None:
        super().__init__(h11.SERVER, max_header_bytes)
        self._max_header_bytes = max_header_bytes
        self._num_chunks = self._num_bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return what comes next, as h11 does.

        Raises:
            h11.RemoteProtocolError: It is no HTTP/1, is ambiguous, or is out of bounds.
        """
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._num_chunks = self._num_bytes = 0
            self._check_header(event)
        elif isinstance(event, h11.Data):
            self._num_chunks += 1
            self._num_bytes += len(event.data)
            if self._num_chunks > FREE_CHUNKS + self._num_bytes // MIN_CHUNK_BYTES:
                raise h11.RemoteProtocolError("The body comes in chunks that are too small.")
        return event

    def _check_header(self, request: h11.Request) -> None:
        names = {name for name, _ in request.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            # Which of the two a proxy in front believed decides where it saw the next request begin.
            raise h11.RemoteProtocolError("The request has both Content-Length and Transfer-Encoding.")
        if request.http_version not in (b"1.0", b"1.1"):
            raise h11.RemoteProtocolError("The request is not HTTP/1.0 or HTTP/1.1.")
        num_bytes = len(request.target) + sum(len(name) + len(value) for name, value in request.headers)
        if num_bytes > self._max_header_bytes:
            raise h11.RemoteProtocolError("The request's header is too long.")
