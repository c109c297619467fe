"""`varco serve`: its options, and what it says instead of starting."""

from __future__ import annotations

import dataclasses
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Captured, fail, shell
from tests.makers.server import DEMO_BUNDLE
from varco_cli.main import main
from varco_serve.settings import ServeSettings

GIVEN: dict[str, tuple[str, Any]] = {
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("0", 0),
    "provider": ("cpu", "cpu"),
    "threads": ("2", 2),
    "slots": ("3", 3),
    "max-context": ("512", 512),
    "max-queue": ("7", 7),
    "queue-timeout": ("1.5", 1.5),
    "request-timeout": ("2.5", 2.5),
    "drain": ("0", 0.0),
    "max-stall-ms": ("20", 20.0),
    "model-name": ("sign-reader", "sign-reader"),
    "allowed-host": ("varco.example", ("varco.example",)),
    "cors": ("https://page.example", ("https://page.example",)),
    "openvino-device": ("GPU", "GPU"),
    "precision": ("fp32", "fp32"),
    "kv-cache-precision": ("u8", "u8"),
}
"""Options, what is given, and what arrives."""
FIELDS = {"queue-timeout": "queue_timeout_s", "request-timeout": "request_timeout_s", "drain": "drain_s"}
FIELDS |= {"allowed-host": "allowed_hosts"}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ServeSettings]:
    """The settings of servers that would have been started."""
    found: list[ServeSettings] = []

    def serve(settings: ServeSettings, say: Any) -> int:
        found.append(settings)
        return 0

    monkeypatch.setattr("varco_serve.serve.serve", serve)
    return found


def test_every_option_arrives(started: list[ServeSettings], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-many-characters\n")
    keys.chmod(0o600)
    arguments = [part for name, (given, _) in GIVEN.items() for part in (f"--{name}", given)]
    assert main(["serve", "bundle", *arguments, "--api-key-file", str(keys), "--log-content"]) == 0
    (settings,) = started
    expected = {FIELDS.get(name, name.replace("-", "_")): value for name, (_, value) in GIVEN.items()}
    for name, value in expected.items():
        assert getattr(settings, name) == value, name
    assert (settings.bundle, len(settings.keys), settings.log_content) == (Path("bundle"), 1, True)
    assert {field.name for field in dataclasses.fields(settings)} == {*expected, "bundle", "keys", "log_content"}


def test_without_options_it_is_for_this_machine_alone(started: list[ServeSettings]) -> None:
    assert main(["serve", "bundle"]) == 0
    assert started == [ServeSettings(Path("bundle"))]


def test_a_server_that_lost_answers_ends_with_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varco_serve.serve.serve", lambda settings, say: 1)
    assert main(["serve", "bundle"]) == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--port", "70000"), "--port 70000 is out of range."),
        (("--port", "x"), "is not a valid int"),
        (("--slots", "none"), "--slots 'none' is no whole number."),
        (("--host", "0.0.0.0"), "Give --api-key-file FILE, or listen on 127.0.0.1"),
        (("--host", "203.0.113.9", "--api-key-file", "KEYS"), "--host 203.0.113.9 is no address of"),
        (("--api-key-file", "missing"), "--api-key-file missing cannot be read"),
        (("--drain", "soon"), "is not a valid float"),
        (("--unknown",), "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_is_one_line(capsys: Captured, tmp_path: Path, arguments: tuple[str, ...], line: str) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-many-characters\n")
    keys.chmod(0o600)
    given = [str(keys) if argument == "KEYS" else argument for argument in arguments]
    assert line in fail(capsys, 2, "serve", str(tmp_path), *given)


def test_a_port_that_is_taken_is_one_line(capsys: Captured) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Port {port} of 127.0.0.1 cannot be had" in fail(capsys, 2, "serve", DEMO_BUNDLE, "--port", str(port))


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (f"'{DEMO_BUNDLE}' --provider npu", 2, "provider"),
        (f"'{DEMO_BUNDLE}' --max-context 5000000", 2, "max_context=5000000 is out of range."),
        ("/missing", 1, "/missing"),
    ],
)
def test_what_the_worker_refuses_ends_the_command_with_its_line(arguments: str, status: int, line: str) -> None:
    ended = shell(f"varco serve {arguments} --port 0")
    assert ended.returncode == status
    *_, last = ended.stderr.strip().splitlines()
    assert last.startswith("varco: ")
    assert line in last
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize("package", ["uvicorn", "starlette", "prometheus_client"])
def test_without_its_packages_one_line_names_the_extra(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in (package, "varco_serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    line = fail(capsys, 1, "serve", DEMO_BUNDLE)
    assert "varco serve needs the extra 'serve'" in line
    assert "install" in line
