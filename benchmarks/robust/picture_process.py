"""Mutated pictures through the server's picture process: the same answer as `load_picture`'s, and it never ends."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from types import TracebackType
from typing import Any

import numpy as np
import psutil

from benchmarks.robust.mutations import mutate, originals
from varco_runtime.errors import ImageError
from varco_runtime.picture.loading import load_picture
from varco_serve import wire
from varco_serve.pictures.formats import ACCEPTED, format_name

MAX_GROWTH_BYTES = 100_000_000
MAX_MESSAGE = 300


class PictureProcess:
    """A picture process of one's own, spoken to from a program without an event loop.

    Args:
        program: What it runs instead, with the socket's number as its argument.
    """

    def __init__(self, program: str | None = None) -> None:
        self.connection, theirs = socket.socketpair()
        what = ["-m", "varco_serve.pictures"] if program is None else ["-c", program]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, *what, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
            )
        self._number = 0
        self._printed = ""

    def ask(self, data: bytes) -> tuple[dict[str, Any], bytes]:
        """Return the header and the body that answer a file.

        Raises:
            WireError: The process has ended.
        """
        self._number += 1
        wire.send(self.connection, {"id": self._number}, data)
        header, body = wire.receive(self.connection)
        if header.pop("id") != self._number:
            raise AssertionError("another request's answer")
        return header, bytes(body)

    def end(self) -> tuple[int, str]:
        """Close the socket and return the exit status and what was printed; the same again if called again."""
        self.connection.close()
        if self.process.stderr is not None and not self.process.stderr.closed:
            self._printed = self.process.communicate(timeout=60)[1].decode()
        return self.process.returncode, self._printed

    def __enter__(self) -> PictureProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def difference(process: PictureProcess, data: bytes) -> str | None:
    """Return what the process says of a file that `load_picture` does not, or None.

    Args:
        process: It answers.
        data: The file.

    Raises:
        WireError: The process has ended.
    """
    header, body = process.ask(data)
    if "error" in header:
        message = header["error"]
        if len(message) > MAX_MESSAGE or not message.isprintable() or "Error" in message or "/" in message:
            return f"not one line for a stranger: {message[:200]!r}"
        if format_name(data) not in ACCEPTED:
            return None
    try:
        picture = load_picture(data)
    except ImageError as error:
        return None if "error" in header else f"decoded, where load_picture says {str(error)[:200]!r}"
    expected = {"width": picture.width, "height": picture.height, "is_animated": picture.is_animated}
    if header != expected:
        return f"{header}, where load_picture says {expected}"
    return None if body == picture.image.tobytes() else "other pixels than load_picture's"


def mutated_in_process(seed: int, count: int) -> dict[str, Any]:
    """Send mutated pictures to one process, which must answer each and be there at the end.

    Args:
        seed: What they are drawn from.
        count: How many.
    """
    files = originals(seed)
    generator = np.random.default_rng([seed, 3])
    faults: list[str] = []
    started = time.perf_counter()
    with PictureProcess() as process:
        memory = psutil.Process(process.process.pid)
        for name, data in files:
            _note(process, data, name, faults)
        before = largest = memory.memory_info().rss
        for index in range(count):
            name, data = files[index % len(files)]
            mutated, how = mutate(data, files[int(generator.integers(len(files)))][1], generator)
            if not _note(process, mutated, f"picture {index}, {name}, {how}", faults):
                break
            if index % 50 == 49:
                largest = max(largest, memory.memory_info().rss)
        status, printed = process.end()
    if status or printed:
        faults.append(f"the process ended with status {status} and printed {printed[:200]!r}")
    if largest - before > MAX_GROWTH_BYTES:
        faults.append(f"resident memory grew by {largest - before} bytes")
    return {
        "count": count,
        "originals": len(files),
        "resident_bytes": before,
        "growth_bytes": largest - before,
        "limit_bytes": MAX_GROWTH_BYTES,
        "wall_s": round(time.perf_counter() - started, 1),
        "faults": faults[:20],
    }


def _note(process: PictureProcess, data: bytes, name: str, faults: list[str]) -> bool:
    """Append what is wrong about an answer to `faults`; return whether the process is still there."""
    try:
        fault = difference(process, data)
    except wire.WireError:
        faults.append(f"{name}: the process ended")
        return False
    if fault is not None:
        faults.append(f"{name}: {fault}")
    return True
