"""What docs/serve.md shows does what it says there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image

from tests.makers.server import RunningServer
from varco_cli.app import app
from varco_serve.documents.chat import MAX_ANSWERS, MAX_TOP_LOGPROBS
from varco_serve.documents.turns import MAX_TEXT_CHARS
from varco_serve.front.limits import FrontLimits
from varco_serve.grammar.compiling import DEADLINE_S
from varco_serve.options import MIN_KEY_CHARS
from varco_serve.pictures.confinement import MEMORY_BYTES, PICTURE_S
from varco_serve.supervisor.deaths import MOST_DEATHS, WITHIN_S

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/serve.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    command
    for _, block in BLOCKS
    for command in re.split(r"\n(?=\S)", block.replace("\\\n", " ").strip())
    if command.startswith("curl ")
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The pictures that the page names."""
    with Image.open(ROOT / "docs/images/sign.png") as sign:
        for name in ("sign.png", "cats.png", "room.png"):
            sign.convert("RGB").resize((120, 120)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("number", range(4))
def test_every_curl_is_answered(server: RunningServer, folder: Path, number: int) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    assert len(COMMANDS) == 4
    command = COMMANDS[number].replace("http://127.0.0.1:8000", server.url).replace("curl ", "curl -sS --fail ", 1)
    done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout)


def test_the_program_runs_with_openais_package(server: RunningServer, folder: Path) -> None:
    (program,) = (block for kind, block in BLOCKS if kind == "python")
    program = program.replace("http://127.0.0.1:8000", server.url)
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole, _, streamed = done.stdout.partition("\n")
    assert whole.strip()
    assert streamed.strip() == whole.strip()


@pytest.mark.parametrize(
    "says",
    [
        f"| body | {FrontLimits().max_body_bytes >> 20} MB,",
        f"together | {FrontLimits().max_held_bytes >> 20} MB |",
        f"| header | {FrontLimits().max_header_bytes >> 10} KB, {FrontLimits().header_s:g} s |",
        f"| connections | {FrontLimits().max_connections:,}",
        f"a body that stays below {FrontLimits().min_body_bytes_per_s / 1024:g} KB/s",
        f"nesting above {FrontLimits().max_depth} levels",
        f"a comment line comes every {FrontLimits().comment_s:g} seconds",
        f"{PICTURE_S:g} s of a core, {MEMORY_BYTES / 1e9:.1f} GB while it is decoded",
        f"| text of a question | {MAX_TEXT_CHARS:,} characters |",
        f"| answers of a request | {MAX_ANSWERS} |",
        f"`n` up to {MAX_ANSWERS}, `logprobs`, `top_logprobs` up to {MAX_TOP_LOGPROBS}",
        f"within limits and {DEADLINE_S:g} seconds",
        f"at least {MIN_KEY_CHARS} characters each",
    ],
)
def test_numbers_are_those_of_the_code(says: str) -> None:
    assert says in " ".join(PAGE.split())


def test_five_deaths_in_ten_minutes_are() -> None:
    assert (MOST_DEATHS, WITHIN_S) == (5, 600)
    assert "five deaths of the process with the model within ten minutes" in PAGE


def test_every_route_stands_on_the_page(server: RunningServer) -> None:
    routes = server.client.get("/openapi.json").json()["paths"]
    assert len(routes) >= 10
    assert [route for route in routes if f"{route}`" not in PAGE] == []


def test_every_option_stands_on_the_page() -> None:
    parameters = typer.main.get_command(app).commands["serve"].params  # type: ignore[attr-defined]
    options = {parameter.opts[0] for parameter in parameters if parameter.opts[0].startswith("--")}
    assert "--drain" in options
    assert [option for option in sorted(options - {"--help"}) if f"`{option}" not in PAGE] == []
