"""h11's reading of a connection, with the bounds that it leaves to its caller."""

from __future__ import annotations

import h11

MIN_CHUNK_BYTES = 64
"""What a chunk of a body must hold on average, after `FREE_CHUNKS`: each costs the same time, however small it is."""
FREE_CHUNKS = 2048
_TOO_LONG = 431
"""The status by which h11 tells a header that is too long from other faults."""


class BoundedConnection(h11.Connection):
    """One client's connection.

    Args:
        max_header_bytes: Of a request's line and header fields. h11 itself bounds only a header that is incomplete.

    Attributes:
        fault: What is wrong with a request that was refused, as a line for its sender.
    """

    def __init__(self, max_header_bytes: int) -> None:
        super().__init__(h11.SERVER, max_header_bytes)
        self._max_header_bytes = max_header_bytes
        self._num_chunks = self._num_bytes = 0
        self.fault = "This is no valid HTTP/1.1 request."

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return what comes next, as h11 does.

        Raises:
            h11.RemoteProtocolError: It is no HTTP/1, is ambiguous, or is out of bounds.
        """
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == _TOO_LONG:
                raise self._refused(self._too_long()) from error
            raise
        if isinstance(event, h11.Request):
            self._num_chunks = self._num_bytes = 0
            self._check_header(event)
        elif isinstance(event, h11.Data):
            self._num_chunks += 1
            self._num_bytes += len(event.data)
            if self._num_chunks > FREE_CHUNKS + self._num_bytes // MIN_CHUNK_BYTES:
                raise self._refused("The body comes in chunks that are too small. Send fewer and larger ones.")
        return event

    def _check_header(self, request: h11.Request) -> None:
        names = {name for name, _ in request.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            # Which of the two a proxy in front believed decides where it saw the next request begin.
            raise self._refused("The request has both Content-Length and Transfer-Encoding. Send one of them.")
        if request.http_version not in (b"1.0", b"1.1"):
            raise self._refused("The request is not HTTP/1.0 or HTTP/1.1.")
        num_bytes = len(request.target) + sum(len(name) + len(value) for name, value in request.headers)
        if num_bytes > self._max_header_bytes:
            raise self._refused(self._too_long())

    def _too_long(self) -> str:
        return f"The request's header has more than {self._max_header_bytes:,} bytes. Send fewer or shorter fields."

    def _refused(self, fault: str) -> h11.RemoteProtocolError:
        self.fault = fault
        return h11.RemoteProtocolError(fault)
