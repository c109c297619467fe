"""Bounds of the HTTP side that no option changes."""

from __future__ import annotations

from dataclasses import dataclass

from varco_serve.settings import MAX_BODY_BYTES


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """What one caller may take up, in bytes, seconds and numbers.

    Args:
        max_body_bytes: Of a request's body.
        max_held_bytes: Of all requests' bodies and decoded pictures together.
        max_header_bytes: Of a request's line and header fields.
        max_connections: Open connections; above it the one that has waited longest for its header is closed.
        max_structures: Brackets and commas of a JSON body, which bound what its parts take in memory.
        max_depth: Levels of a JSON body.
        header_s: From the first byte that is waited for to the end of the header.
        keep_alive_s: How long a connection may be idle between two requests.
        body_s: How long a body may take besides what its size allows.
        min_body_bytes_per_s: The pace that its size allows it.
        linger_s: How long the rest of a refused body is read, so that its sender sees the answer.
        stalled_write_s: How long a client may leave an answer unread.
        comment_s: After how much silence a stream gets a comment line.
    """

    max_body_bytes: int = MAX_BODY_BYTES
    max_held_bytes: int = 16 * MAX_BODY_BYTES
    max_header_bytes: int = 32 << 10
    max_connections: int = 2048
    max_structures: int = 250_000
    max_depth: int = 100
    header_s: float = 10.0
    keep_alive_s: int = 30
    body_s: float = 30.0
    min_body_bytes_per_s: float = 16_384.0
    linger_s: float = 3.0
    stalled_write_s: float = 60.0
    comment_s: float = 10.0
