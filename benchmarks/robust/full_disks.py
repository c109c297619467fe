"""Exports onto disks that are too small."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.robust.bundles import export_tiny
from varco_runtime.errors import ExportError


def full_disks(checkpoint: Path, reference: Path, folder: Path, count: int) -> dict[str, Any]:
    """Export onto disks that are too small, each a little larger than the last."""
    started = time.perf_counter()
    total = sum(path.stat().st_size for path in reference.iterdir())
    faults: list[str] = []
    kind = "tmpfs"
    for number in range(count):
        num_bytes = 4096 * 4 + int(total * 0.97 * number / count)
        folder.mkdir()
        with contextlib.ExitStack() as stack:
            if not stack.enter_context(_small_disk(folder, num_bytes)):
                kind = "simulated"
                stack.enter_context(_simulated_disk(num_bytes))
            try:
                export_tiny(checkpoint, folder / "bundle")
                faults.append(f"{num_bytes} bytes: the export did not fail")
            except ExportError as error:
                if "\n" in str(error) or "could not be written: No space left" not in str(error):
                    faults.append(f"{num_bytes} bytes: {str(error)[:200]!r}")
            except Exception as error:
                faults.append(f"{num_bytes} bytes: {type(error).__name__}: {error}")
            if left := os.listdir(folder):
                faults.append(f"{num_bytes} bytes: {left} is left")
        shutil.rmtree(folder)
    return {"count": count, "disk": kind, "wall_s": round(time.perf_counter() - started, 1), "faults": faults[:20]}


@contextlib.contextmanager
def _small_disk(folder: Path, num_bytes: int) -> Iterator[bool]:
    """A file system of that size at `folder`, where this user may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def _simulated_disk(num_bytes: int) -> Iterator[None]:
    """All hashed files together take `num_bytes`; what is over fails as a full disk does."""
    from varco_export.writing import hashed_file as output

    left = num_bytes

    class File(io.FileIO):
        def write(self, data: Any) -> int:
            nonlocal left
            if left == 0:
                raise OSError(28, "No space left on device")
            taken = min(left, len(data))
            left -= taken
            return super().write(data[:taken])

    output.open = lambda path, mode, buffering: File(path, mode)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del output.open  # type: ignore[attr-defined]
