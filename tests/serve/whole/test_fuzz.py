"""The whole server under requests with bytes changed: none hangs, none is our fault, no process is started again."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from tests.makers.http_requests import HEALTH, check_answers, http_requests, many_changed
from tests.makers.server import RunningServer, until

PATIENCE_S = 2.0
"""A request that lost its end is waited for by the server; its client leaves after so long."""
TOGETHER = 6


def _answered(server: RunningServer, request: bytes, patience_s: float = PATIENCE_S) -> bytes:
    address = urlsplit(server.url)
    received = b""
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        try:
            connection.sendall(request)
            connection.settimeout(patience_s)
            while data := connection.recv(65_536):
                received += data
        except OSError:  # closed, or nothing came
            pass
    return received


def check_server(server: RunningServer, sent: list[bytes]) -> list[bytes]:
    """Send requests, several at a time, and check the answers, and that the server is as it was."""
    before = (server.pid, server.worker_pid, server.pictures_pid)
    with ThreadPoolExecutor(TOGETHER) as callers:
        answers = list(callers.map(lambda request: _answered(server, request), sent))
    check_answers(sent, answers)
    until(lambda: server.metric("varco_answers_running") == server.metric("varco_answers_waiting") == 0)
    assert b" 200 OK" in _answered(server, HEALTH, 30)
    assert (server.pid, server.worker_pid, server.pictures_pid) == before
    assert server.metric("varco_restarts_total") == 0
    return answers


def _routes(server: RunningServer) -> list[str]:
    return list(server.client.get("/openapi.json").json()["paths"])


def test_every_method_on_every_route_is_answered(server: RunningServer) -> None:
    check_server(server, [request.on_the_wire() for request in http_requests(_routes(server))])


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2))
def test_requests_with_changed_bytes_are_answered_or_closed(server: RunningServer, seed: int) -> None:
    answers = check_server(server, many_changed(_routes(server), seed, 1000))
    assert sum(answer.startswith(b"HTTP/1.1 200 ") for answer in answers) > 50
