"""The picture process: one file after the other becomes pixels, until the front closes the socket.

Request: `{"id": n}` and the bytes of a file. Reply: `{"id": n, "width": w, "height": h, "is_animated": b}` and RGB, or
`{"id": n, "error": line, "code": name}`. After anything but an ordinary refusal the process ends with status 1, and its
successor begins with clean memory.
"""

from __future__ import annotations

import importlib
import socket
import sys
from typing import Any

from PIL import Image

from varco_serve import wire
from varco_serve.child import be_a_child
from varco_serve.pictures.confinement import (
    PICTURE_S,
    TooSlowError,
    confine,
    limited_time,
    never_gain_rights,
    return_freed_memory,
)
from varco_serve.pictures.decoding import Decoded, RefusedError, decode

_PLUGINS = ("Bmp", "Gif", "Jpeg", "Mpo", "Png", "Tiff", "WebP")
"""All that decoding imports, while files can still be opened; TIFF for the tags of EXIF."""


def main(arguments: list[str]) -> int:
    """Serve the socket whose number is the only argument; return the exit status.

    Args:
        arguments: The command line behind the module's name.
    """
    be_a_child()
    connection = socket.socket(fileno=int(arguments[0]))
    for plugin in _PLUGINS:
        importlib.import_module(f"PIL.{plugin}ImagePlugin")
    Image.preinit()
    never_gain_rights()
    confine()
    while True:
        try:
            if not _serve_one(connection):
                return 1
        except wire.WireError:
            return 0
        except Exception as error:  # a fault of ours: for the log, and the successor goes on
            sys.stderr.write(f"varco: the picture process ends: {type(error).__name__}: {error}\n")
            return 1


def _serve_one(connection: socket.socket) -> bool:
    """Answer the next request; return whether the process may go on."""
    header, data = wire.receive(connection)
    may_go_on = _answer(connection, int(header["id"]), bytes(data))
    del data
    return_freed_memory()
    return may_go_on


def _answer(connection: socket.socket, number: int, data: bytes) -> bool:
    """Send what became of a file; return whether the process may go on."""
    try:
        with limited_time(PICTURE_S):
            decoded = decode(data)
    except TooSlowError:
        message = "The picture takes longer to decode than one may. Save it again as PNG or JPEG, in a smaller size."
        return _refuse(connection, number, RefusedError(message, "image_too_large", is_ordinary=False))
    except MemoryError:
        message = "The picture takes more memory to decode than one may. Save it in a smaller size."
        return _refuse(connection, number, RefusedError(message, "image_too_large", is_ordinary=False))
    except RefusedError as refused:
        return _refuse(connection, number, refused)
    wire.send(connection, _header(number, decoded), *decoded.bands)
    return True


def _refuse(connection: socket.socket, number: int, refused: RefusedError) -> bool:
    wire.send(connection, {"id": number, "error": str(refused), "code": refused.code})
    return refused.is_ordinary


def _header(number: int, decoded: Decoded) -> dict[str, Any]:
    return {"id": number, "width": decoded.width, "height": decoded.height, "is_animated": decoded.is_animated}
