"""Data URLs of pictures -> the bytes of their files. No other URL is taken: the server opens no connection."""

from __future__ import annotations

import binascii
import re

from varco_serve.documents.errors import RequestError
from varco_serve.documents.fields import shown

TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp")
"""Which pictures are taken. What a file really is, its bytes decide, where they are decoded."""
_OTHER_NAMES = {"image/jpg": "image/jpeg", "image/x-ms-bmp": "image/bmp"}
_MAX_HEADER_CHARS = 256
_HEADER = re.compile(r"data:([^;,\s]*)((?:;[^;,\s]*)*)", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}:")
_EXPECTED = "expected data:image/png;base64,... (or jpeg, webp, gif, bmp)"


def is_picture_type(media_type: str) -> bool:
    """Return whether files of a media type are taken.

    Args:
        media_type: In lower case, without parameters.
    """
    return _OTHER_NAMES.get(media_type, media_type) in TYPES


def check_picture_url(url: str, path: str) -> int:
    """Check that a URL is a picture's data URL, without decoding it, and return where its base64 begins.

    Args:
        url: As the request gives it.
        path: Where it stands in the request.

    Raises:
        RequestError: It is another URL, or of a type that is not taken.
    """
    header, comma, _ = url[:_MAX_HEADER_CHARS].partition(",")
    if header[:5].lower() != "data:":
        raise RequestError(f"{path} {_fault(url)}, {_EXPECTED}.", param=path, code="invalid_image_url")
    match = _HEADER.fullmatch(header)
    if not comma or match is None:
        raise RequestError(f"{path} begins {shown(header)}, {_EXPECTED}.", param=path, code="invalid_image_url")
    media_type, parameters = match[1].lower(), match[2].lower().split(";")
    if not is_picture_type(media_type):
        raise RequestError(
            f"{path} is of the type {shown(media_type)}, expected one of {', '.join(TYPES)}.",
            param=path,
            code="unsupported_image_type",
        )
    if parameters[-1] != "base64":
        raise RequestError(f"{path} is not in base64, {_EXPECTED}.", param=path, code="invalid_image_url")
    return len(header) + 1


def decode_picture(url: str, start: int, path: str) -> bytes:
    """Return the file that a checked data URL holds.

    Args:
        url: What `check_picture_url` has let through.
        start: Where its base64 begins.
        path: Where it stands in the request.

    Raises:
        RequestError: It is no base64, to the last character, or empty.
    """
    try:
        if url.endswith("==="):  # more padding than any text needs, which Python's decoder takes behind whole groups
            raise ValueError
        data = binascii.a2b_base64(url[start:], strict_mode=True)
    except (binascii.Error, ValueError):  # a ValueError for what is not ASCII
        raise RequestError(
            f"{path} is not base64 by RFC 4648, section 4: expected its alphabet and padding, without line breaks.",
            param=path,
            code="invalid_base64",
        ) from None
    if not data:
        raise RequestError(f"{path} holds no bytes, expected a picture file.", param=path, code="invalid_base64")
    return data


def _fault(url: str) -> str:
    scheme = _SCHEME.match(url)
    if scheme is None:
        return "is no data URL"
    return f"is a URL of the scheme {scheme[0].lower()} which this server does not fetch"
