"""One server for all tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.makers.server import RunningServer


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """A server of eight slots over the demo bundle; tests that kill or stop one start their own."""
    with RunningServer("--slots", "8", "--threads", "1") as server:
        yield server
