"""The options of `varco serve`, checked before anything is started."""

from __future__ import annotations

import hashlib
import ipaddress
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

from varco_runtime.backends.slots import AUTO, check_slots
from varco_runtime.errors import UsageError
from varco_serve.settings import LOCALHOST, ServeSettings, is_loopback

MAX_KEY_FILE_BYTES = 1 << 16
MIN_KEY_CHARS = 16
"""A key that is shorter can be guessed: 16 characters of a random one are 64 bits and more."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")
_HOST = re.compile(r"[A-Za-z0-9._\-\[\]:]+")


def serve_settings(*, api_key_file: Path | None, slots: str, **options: Any) -> ServeSettings:
    """Return the settings that options ask for.

    Args:
        api_key_file: Keys, one per line; blank lines and lines that begin with # count for nothing.
        slots: A number, or `auto`.
        **options: The others, by the names of `ServeSettings`.

    Raises:
        UsageError: One cannot be honoured.
    """
    number = slots if slots == AUTO else _whole(slots)
    check_slots(number)
    settings = ServeSettings(slots=number, keys=() if api_key_file is None else read_keys(api_key_file), **options)
    _check_range("--port", settings.port, 0, 65535)
    _check_range("--max-queue", settings.max_queue, 0, 100_000)
    for name, seconds in (
        ("--queue-timeout", settings.queue_timeout_s),
        ("--request-timeout", settings.request_timeout_s),
        ("--drain", settings.drain_s),
    ):
        least = 0 if name == "--drain" else 0.001
        if not (math.isfinite(seconds) and least <= seconds <= 1e6):
            raise UsageError(f"{name} {seconds:g} is out of range. Expected seconds from {least:g} to 1000000.")
    if not 0 <= settings.max_stall_ms < math.inf:
        raise UsageError(f"--max-stall-ms {settings.max_stall_ms:g} is no time. Expected milliseconds from 0.")
    if not _NAME.fullmatch(settings.model_name):
        raise UsageError(
            f"--model-name {settings.model_name!r} is no name. Expected letters, digits and . _ : / - behind the first."
        )
    for host in settings.allowed_hosts:
        if not _HOST.fullmatch(host):
            raise UsageError(f"--allowed-host {host!r} is no host name. Expected one without scheme and path.")
    for origin in settings.cors:
        if not _ORIGIN.fullmatch(origin):
            raise UsageError(f"--cors {origin!r} is no origin. Expected scheme, host and port: https://page.example")
    _check_address(settings.host)
    if not settings.keys and not is_loopback(settings.host):
        raise UsageError(
            f"--host {settings.host} lets other machines in, and nobody would be asked for a key. Give --api-key-file "
            "FILE, or listen on 127.0.0.1 and let a proxy ask."
        )
    return settings


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Return the SHA-256 digests of a file's keys.

    Raises:
        UsageError: The file cannot be read, may be read by every user of this machine, or holds no usable key.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISFIFO(status.st_mode):
                raise UsageError(f"--api-key-file {path} is no file. Expected one with a key per line.")
            if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH:
                raise UsageError(
                    f"--api-key-file {path} can be read by every user of this machine. Run: chmod 600 {path}"
                )
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--api-key-file {path} cannot be read: {error.strerror}.") from None
    if len(data) > MAX_KEY_FILE_BYTES:
        raise UsageError(f"--api-key-file {path} has more than {MAX_KEY_FILE_BYTES} bytes. Expected a key per line.")
    lines = [line.strip() for line in data.splitlines()]
    keys = [(number, key) for number, key in enumerate(lines, 1) if key and not key.startswith(b"#")]
    if not keys:
        raise UsageError(f"--api-key-file {path} holds no key. Expected one per line.")
    for number, key in keys:
        if len(key) < MIN_KEY_CHARS or not re.fullmatch(rb"[!-~]+", key):
            raise UsageError(
                f"--api-key-file {path} line {number} is no key. Expected at least {MIN_KEY_CHARS} visible ASCII "
                "characters, such as those of: openssl rand -hex 32"
            )
    return tuple(hashlib.sha256(key).digest() for _, key in keys)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--slots {text!r} is no whole number. Expected 1 to 64, or auto.") from None


def _check_address(host: str) -> None:
    """Check that an address is one of numbers: to look up a name, the server would have to ask the network."""
    try:
        if host != LOCALHOST:
            ipaddress.ip_address(host)
    except ValueError:
        raise UsageError(
            f"--host {host!r} is no address. Expected one of numbers, such as 127.0.0.1, 0.0.0.0 or ::, or {LOCALHOST}."
        ) from None


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UsageError(f"{name} {value} is out of range. Expected {least} to {most}.")
