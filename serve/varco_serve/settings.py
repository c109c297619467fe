"""What a server was started with."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

LOCALHOST = "localhost"
"""The one name of an address that is taken: 127.0.0.1, without asking the network."""
MAX_BODY_BYTES = 32 << 20
"""Of a request, pictures in base64 included."""


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine alone.

    Args:
        host: An address of numbers, or `LOCALHOST`; any other text is none.
    """
    try:
        return host == LOCALHOST or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """The options of `varco serve`, checked.

    Args:
        bundle: The bundle's folder.
        host: Address to listen on.
        port: Port to listen on; 0 for any that is free.
        keys: SHA-256 digests of the keys that are let in; none lets everybody in, on loopback alone.
        model_name: What requests call the model.
        provider: As for `Varco.load`.
        threads: As for `Varco.load`.
        slots: As for `Varco.load`.
        max_context: As for `Varco.load`.
        max_stall_ms: As for `Varco.load`.
        max_queue: Questions that may wait for a slot.
        queue_timeout_s: How long one may wait.
        request_timeout_s: How long one may take in all.
        drain_s: How long running answers may go on after SIGTERM.
        allowed_hosts: Values of the header Host that are let in besides those of loopback and `host`.
        cors: Origins of pages that may ask.
        openvino_device: As for `Varco.load`.
        precision: As for `Varco.load`.
        kv_cache_precision: As for `Varco.load`.
        log_content: Whether logs hold prompts and answers.
    """

    bundle: Path
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[bytes, ...] = ()
    model_name: str = "varco"
    provider: str = "auto"
    threads: int | None = None
    slots: int | str = "auto"
    max_context: int | None = None
    max_stall_ms: float = 50.0
    max_queue: int = 64
    queue_timeout_s: float = 600.0
    request_timeout_s: float = 1800.0
    drain_s: float = 60.0
    allowed_hosts: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    openvino_device: str = "auto"
    precision: str = "auto"
    kv_cache_precision: str = "auto"
    log_content: bool = False
