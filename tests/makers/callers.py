"""Callers of a server that do what good clients do not: leave in the middle."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

from tests.makers.server import RunningServer, until


def leave_stream(server: RunningServer, document: dict[str, Any]) -> None:
    """Ask for a stream, read its first chunk, and hang up."""
    with server.client.stream("POST", "/v1/chat/completions", json={**document, "stream": True}) as answer:
        assert answer.status_code == 200
        next(answer.iter_raw())


def leave_plain(server: RunningServer, document: dict[str, Any], *, wait: bool) -> None:
    """Ask for an answer in one piece, and hang up at once or once it is being made."""
    body = json.dumps(document).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        if wait:
            until(lambda: server.metric("varco_answers_running") > 0)


def disconnected(server: RunningServer) -> int:
    """Return how many requests the server has seen the end of because their caller left."""
    return sum('"reason": "disconnected"' in line for line in list(server.lines))
