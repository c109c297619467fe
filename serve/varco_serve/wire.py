"""Frames on a socket pair: a bounded JSON header and raw bytes, nothing that is unpickled or run.

Layout of a frame, numbers big-endian: header length u32, body length u32, the header (UTF-8 JSON object), the body.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:  # the picture decoder, which needs no event loop, saves its memory
    import asyncio

MAX_HEADER_BYTES = 48 << 20
"""A request's text comes in a header; the body of an HTTP request is at most 32 MB, which JSON may escape."""
MAX_BODY_BYTES = 1 << 30
"""Pixels of all pictures of a request."""
_LENGTHS = struct.Struct(">II")


Buffer: TypeAlias = bytes | bytearray | memoryview


class WireError(Exception):
    """The other side closed the connection, or sent what is no frame."""


class TooLargeError(WireError):
    """A frame is larger than the other side takes; nothing of it was sent."""


def _packed(header: dict[str, Any], parts: Sequence[Buffer]) -> bytes:
    text = json.dumps(header, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()
    num_bytes = sum(memoryview(part).nbytes for part in parts)
    if len(text) > MAX_HEADER_BYTES or num_bytes > MAX_BODY_BYTES:
        raise TooLargeError(f"A frame has {len(text)} + {num_bytes} bytes, more than the other side takes.")
    return _LENGTHS.pack(len(text), num_bytes) + text


def _unpacked(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except ValueError as error:
        raise WireError("A frame's header is no JSON.") from error
    if not isinstance(header, dict):
        raise WireError("A frame's header is no JSON object.")
    return header


def _lengths(prefix: bytes) -> tuple[int, int]:
    num_header, num_body = _LENGTHS.unpack(prefix)
    if num_header > MAX_HEADER_BYTES or num_body > MAX_BODY_BYTES:
        raise WireError(f"A frame says {num_header} + {num_body} bytes, more than is taken.")
    return num_header, num_body


def send(connection: socket.socket, header: dict[str, Any], *parts: Buffer) -> None:
    """Send one frame over a blocking socket.

    Args:
        connection: One end of a socket pair.
        header: What JSON can hold.
        parts: Bytes, one behind the other.

    Raises:
        TooLargeError: The frame is too large.
        WireError: Nobody reads it any more.
    """
    try:
        connection.sendall(_packed(header, parts))
        for part in parts:
            connection.sendall(part)
    except OSError as error:
        raise WireError("The other side has closed the connection.") from error


def receive(connection: socket.socket) -> tuple[dict[str, Any], bytearray]:
    """Receive one frame from a blocking socket.

    Raises:
        WireError: The other side has closed the connection, or sent what is no frame.
    """
    num_header, num_body = _lengths(bytes(_exactly(connection, _LENGTHS.size)))
    return _unpacked(bytes(_exactly(connection, num_header))), _exactly(connection, num_body)


def _exactly(connection: socket.socket, num_bytes: int) -> bytearray:
    taken = bytearray(num_bytes)
    view = memoryview(taken)
    while view.nbytes:
        try:
            count = connection.recv_into(view)
        except OSError as error:
            raise WireError("The other side has closed the connection.") from error
        if count == 0:
            raise WireError("The other side has closed the connection.")
        view = view[count:]
    return taken


async def send_async(writer: asyncio.StreamWriter, header: dict[str, Any], *parts: Buffer) -> None:
    """Send one frame from an event loop. One caller at a time: frames must not mix.

    Raises:
        TooLargeError: The frame is too large.
        WireError: Nobody reads it any more.
    """
    try:
        writer.write(_packed(header, parts))
        for part in parts:
            writer.write(memoryview(part).cast("B"))
            await writer.drain()
        await writer.drain()
    except (OSError, RuntimeError) as error:
        raise WireError("The other side has closed the connection.") from error


async def receive_async(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    """Receive one frame in an event loop.

    Raises:
        WireError: The other side has closed the connection, or sent what is no frame.
    """
    try:
        num_header, num_body = _lengths(await reader.readexactly(_LENGTHS.size))
        header = _unpacked(await reader.readexactly(num_header))
        return header, await reader.readexactly(num_body)
    except (EOFError, OSError) as error:
        raise WireError("The other side has closed the connection.") from error
