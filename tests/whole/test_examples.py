"""The examples run as they stand, on a tiny bundle."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import export_bundle

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    return str(path)


def run(name: str, *arguments: object) -> None:
    runpy.run_path(str(EXAMPLES / name))["main"](*map(str, arguments))


def test_every_example_is_run_here() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == [
        "ask.py",
        "ask_server.py",  # in tests/serve/clients, beside a server
        "chat.py",
        "export.py",
        "ocr.py",
        "stream.py",
    ]


def test_ask(tiny_bundle: Path, picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("ask.py", tiny_bundle, picture, "What is this?")
    assert "tokens asked" in capsys.readouterr().out


def test_ocr_writes_its_overlay(tiny_checkpoint: Path, picture: str, tmp_path: Path) -> None:
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", max_context=300)  # random weights read to its end
    run("ocr.py", bundle, picture, tmp_path / "overlay.png")
    with Image.open(tmp_path / "overlay.png") as overlay:
        assert overlay.size == (80, 60)


def test_stream(tiny_bundle: Path, picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("stream.py", tiny_bundle, picture, "What is this?")
    assert capsys.readouterr().out.rstrip().endswith("]")


def test_chat_encodes_the_picture_once(tiny_bundle: Path, picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("chat.py", tiny_bundle, picture, "How many?", "What colour?")
    assert "(0 tokens were in the cache)" not in capsys.readouterr().out.splitlines()[-1]


def test_export(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run("export.py", tiny_checkpoint, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "bundle.json").is_file()
