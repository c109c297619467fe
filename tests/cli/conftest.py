"""The command in this process and in a shell, and what it is given."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from varco_cli.main import main
from varco_runtime import Varco

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "sky.png"
    Image.linear_gradient("L").resize((90, 60)).convert("RGB").save(path)
    return path


@pytest.fixture(scope="session")
def varco(tiny_bundle: Path) -> Varco:
    return Varco.load(tiny_bundle)


@pytest.fixture
def broken_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with a flipped byte in a large file and a missing graph."""
    broken = shutil.copytree(tiny_bundle, tmp_path / "broken")
    content = bytearray((broken / "embedding.bin").read_bytes())
    content[7] ^= 1
    (broken / "embedding.bin").write_bytes(content)
    (broken / "vision.onnx").unlink()
    return broken


def run(capsys: Captured, *arguments: str | Path) -> tuple[str, str]:
    """Standard output and error of a command that must succeed."""
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out, err


def fail(capsys: Captured, status: int, *arguments: str | Path) -> str:
    """The one line of a command that must fail and print nothing else."""
    assert main([str(argument) for argument in arguments]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("varco: ")
    assert err.count("\n") == 1, f"not one line: {err!r}"
    return err


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `varco` is the command."""
    script = f'set -o pipefail; varco() {{ "{sys.executable}" -m varco_cli.main "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=600, env={**os.environ, **variables}
    )
