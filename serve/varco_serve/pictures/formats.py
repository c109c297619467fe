"""Which formats the server takes, told by a file's first bytes, and what the others are called."""

from __future__ import annotations

import re

from varco_runtime.picture.bounds import FORMATS, VIDEO

ACCEPTED = ("PNG", "JPEG", "WebP", "GIF", "BMP")
"""Names as `bounds.FORMATS` has them. TIFF and JPEG 2000 stay with the command line: hundreds of ways to write one, or
a decoder that holds Python's lock, are no work for a server."""

_OTHERS = (
    (rb"....ftyp(?:avi[fs])", "AVIF picture"),
    (rb"....ftyp(?:hei|hev|mif|msf)", "HEIC picture"),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "JPEG XL picture"),
    (rb"\x00\x00\x01\x00", "Windows icon"),
    (rb"8BPS", "Photoshop document"),
    (rb"%PDF", "PDF document"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript document"),
    (rb"\s*(?:<\?xml.{0,512})?<svg", "SVG drawing"),
    (rb"\s*<", "text of markup"),
    (VIDEO, "video"),
    (rb"ID3|OggS|fLaC|RIFF....WAVE|\xff[\xf2\xf3\xfb]", "sound"),
    (rb"PK\x03\x04|\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf", "archive"),
)


def format_name(data: bytes) -> str | None:
    """Return what a picture file is, as far as its first bytes tell: a name of `ACCEPTED` or another; None if unknown.

    Args:
        data: The file, or its first kilobyte.
    """
    for signature, format_ in FORMATS:
        if re.match(signature, data, re.DOTALL):
            return format_.name
    return next((name for signature, name in _OTHERS if re.match(signature, data, re.DOTALL)), None)
