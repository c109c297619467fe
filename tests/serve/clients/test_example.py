"""The example that asks a server."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.makers.server import RunningServer

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "ask_server.py"


def test_it_reads_the_sign(
    server: RunningServer, sign: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sign.png").write_bytes(sign)
    runpy.run_path(str(EXAMPLE))["main"](f"{server.url}/v1", str(tmp_path / "sign.png"))
    out = capsys.readouterr().out
    assert "text 'EXIT' at [[" in out
    assert "tokens asked" in out
