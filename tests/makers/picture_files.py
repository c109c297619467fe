"""Pictures as files have them, whole and in pieces."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """Return a picture as a file of a format, with options of Pillow's `save`."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def png_chunk(kind: bytes, body: bytes = b"") -> bytes:
    """Return a chunk of a PNG with the right checksum, whatever it holds."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
