"""The options of `varco serve`: each value that cannot be honoured is refused in one line, before anything starts."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Any

import pytest

from varco_runtime.errors import UsageError
from varco_serve.options import MAX_KEY_FILE_BYTES, read_keys, serve_settings
from varco_serve.settings import is_loopback

KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"


def settings(**changed: Any) -> Any:
    return serve_settings(**{"bundle": Path("bundle"), "api_key_file": None, "slots": "auto", **changed})


def key_file(folder: Path, data: bytes, mode: int = 0o600) -> Path:
    path = folder / "keys"
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_values_at_their_bounds_are_taken() -> None:
    for options in (
        {"port": 0},
        {"port": 65535},
        {"max_queue": 0},
        {"drain_s": 0},
        {"max_stall_ms": 0},
        {"slots": "1"},
        {"slots": "64"},
        {"host": "::1"},
        {"host": "127.9.9.9"},
        {"host": "localhost"},
        {"model_name": "NCSOFT/VARCO-VISION-2.0:1.7B"},
        {"allowed_hosts": ("varco.example", "10.0.0.1:8000", "[::1]")},
        {"cors": ("https://page.example", "http://localhost:3000")},
    ):
        settings(**options)
    assert settings(slots="3").slots == 3
    assert settings().slots == "auto"


REFUSED = [
    ({"port": -1}, "--port -1 is out of range. Expected 0 to 65535."),
    ({"port": 65536}, "--port 65536 is out of range."),
    ({"max_queue": -1}, "--max-queue -1 is out of range."),
    ({"max_queue": 10**9}, "--max-queue 1000000000 is out of range."),
    ({"queue_timeout_s": 0}, "--queue-timeout 0 is out of range."),
    ({"queue_timeout_s": float("nan")}, "--queue-timeout nan is out of range."),
    ({"request_timeout_s": float("inf")}, "--request-timeout inf is out of range."),
    ({"request_timeout_s": -5}, "--request-timeout -5 is out of range."),
    ({"drain_s": -1}, "--drain -1 is out of range."),
    ({"max_stall_ms": -1}, "--max-stall-ms -1 is no time."),
    ({"max_stall_ms": float("nan")}, "--max-stall-ms nan is no time."),
    ({"slots": "many"}, "--slots 'many' is no whole number. Expected 1 to 64, or auto."),
    ({"slots": "0"}, "slots=0 is out of range."),
    ({"slots": "65"}, "slots=65 is out of range."),
    ({"slots": "2.5"}, "--slots '2.5' is no whole number."),
    ({"model_name": ""}, "--model-name '' is no name."),
    ({"model_name": "a b"}, "--model-name 'a b' is no name."),
    ({"model_name": "a\nb"}, r"--model-name 'a\nb' is no name."),
    ({"host": "varco.example"}, "--host 'varco.example' is no address."),
    ({"host": ""}, "--host '' is no address."),
    ({"host": "127.0.0.1\n"}, r"--host '127.0.0.1\n' is no address."),
    ({"host": "0.0.0.0"}, "--host 0.0.0.0 lets other machines in"),
    ({"host": "::"}, "--host :: lets other machines in"),
    ({"host": "10.1.2.3"}, "--host 10.1.2.3 lets other machines in"),
    ({"allowed_hosts": ("http://a",)}, "--allowed-host 'http://a' is no host name."),
    ({"cors": ("page.example",)}, "--cors 'page.example' is no origin."),
    ({"cors": ("*",)}, "--cors '*' is no origin."),
    ({"cors": ("https://page.example/path",)}, "--cors 'https://page.example/path' is no origin."),
]


@pytest.mark.parametrize(("changed", "line"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_cannot_be_honoured_is_one_line(changed: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(**changed)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_beyond_loopback_keys_are_needed_and_enough(tmp_path: Path) -> None:
    path = key_file(tmp_path, f"{KEY}\n".encode())
    assert settings(host="0.0.0.0", api_key_file=path).keys == (hashlib.sha256(KEY.encode()).digest(),)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_this_machine_alone(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "localhost.example", "8.8.8.8", ""])
def test_anything_else_is_not(host: str) -> None:
    assert not is_loopback(host)


def test_keys_stand_one_per_line_beside_comments(tmp_path: Path) -> None:
    other = secrets.token_urlsafe(32)
    path = key_file(tmp_path, f"# of the scanner\n\n  {KEY}  \r\n{other}\n".encode())
    assert read_keys(path) == tuple(hashlib.sha256(key.encode()).digest() for key in (KEY, other))


@pytest.mark.parametrize(
    ("data", "mode", "line"),
    [
        (b"", 0o600, "holds no key"),
        (b"# only a comment\n\n", 0o600, "holds no key"),
        (b"short\n", 0o600, "line 1 is no key"),
        (b"# fine\n" + b"with space in it 123456\n", 0o600, "line 2 is no key"),
        (b"\xff" * 20, 0o600, "line 1 is no key"),
        (b"a" * (MAX_KEY_FILE_BYTES + 1), 0o600, "bytes. Expected a key per line."),
        (KEY.encode(), 0o644, "can be read by every user of this machine. Run: chmod 600"),
    ],
)
def test_a_key_file_that_is_none_is_refused_without_its_content(
    tmp_path: Path, data: bytes, mode: int, line: str
) -> None:
    with pytest.raises(UsageError, match=r"^--api-key-file ") as caught:
        read_keys(key_file(tmp_path, data, mode))
    assert line in str(caught.value)
    for word in ("short", "with space", KEY):
        assert word not in str(caught.value)


def test_a_key_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            read_keys(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a device that never ends")
def test_a_device_is_no_key_file() -> None:
    with pytest.raises(UsageError, match="is no file"):
        read_keys(Path("/dev/zero"))


def test_keys_may_come_through_a_pipe() -> None:
    """`--api-key-file <(pass show varco)` leaves no file behind."""
    reading, writing = os.pipe()
    os.write(writing, f"{KEY}\n".encode())
    os.close(writing)
    try:
        assert len(read_keys(Path(f"/dev/fd/{reading}"))) == 1
    finally:
        os.close(reading)
