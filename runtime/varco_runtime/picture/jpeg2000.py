"""JPEG 2000 decoded in a process of its own: in this one, Pillow would hold Python's lock until OpenJPEG is done.

OpenJPEG is the slowest of the decoders, some 10 million pixels per second, and the only one during which no other
thread can run. The child is this Python with Pillow alone.
"""

from __future__ import annotations

import json
import subprocess
import sys

from PIL import Image

MIN_PIXELS = 1_000_000
"""Pictures below are decoded faster than a process starts."""

_CHILD = """
import io, json, sys
sys.path[:] = json.loads(sys.argv[1])
from PIL import Image
out = sys.stdout.buffer
try:
    with Image.open(io.BytesIO(sys.stdin.buffer.read()), formats=("JPEG2000",)) as image:
        image.load()
    if image.mode not in ("L", "LA", "RGB", "RGBA", "I;16"):
        image = image.convert("RGB")
    out.write(b"pixels %s %d %d\\n" % (image.mode.encode(), *image.size))
    out.write(image.tobytes())
except Exception as error:
    out.write(b"error " + str(error).encode("utf-8", "replace"))
"""


def decode_apart(data: bytes) -> Image.Image | None:
    """Return the decoded picture, or None where no child can be started (Python is embedded in another program).

    Args:
        data: the whole file.

    Raises:
        OSError: the picture cannot be decoded, or the child was stopped.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        return None
    command = [sys.executable, "-S", "-c", _CHILD, json.dumps(sys.path)]
    try:
        done = subprocess.run(command, input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    except OSError:
        return None
    if done.returncode < 0:
        raise OSError(f"its decoder was stopped by signal {-done.returncode}")
    head, _, pixels = done.stdout.partition(b"\n")
    kind, _, rest = head.partition(b" ")
    if kind == b"error":
        raise OSError(rest.decode())
    if kind != b"pixels":  # `sys.executable` is another program, which embeds Python
        return None
    mode, width, height = rest.decode().split()
    return Image.frombytes(mode, (int(width), int(height)), pixels)
