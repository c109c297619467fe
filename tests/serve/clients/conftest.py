"""The real clients, unchanged, and what they are compared with."""

from __future__ import annotations

import io
from collections.abc import Iterator

import openai
import pytest

from tests.makers.server import DEMO_BUNDLE, RunningServer
from varco_cli.commands.demo import draw_sign
from varco_runtime import Varco


@pytest.fixture(scope="session")
def sign() -> bytes:
    """The demo's picture, a PNG file."""
    file = io.BytesIO()
    draw_sign()[0].save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def varco() -> Varco:
    """The server's model, in this process."""
    return Varco.load(DEMO_BUNDLE, provider="cpu", threads=1)


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    """OpenAI's client, without retries, so that a failure is seen."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client
