"""Exports killed with SIGKILL at the moments at which they touch the disk."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.robust.bundles import export_tiny, opens, same


def killed_exports(checkpoint: Path, reference: Path, folder: Path, count: int) -> dict[str, Any]:
    """Kill exports at `count` of the moments at which they touch the disk."""
    started = time.perf_counter()
    folder.mkdir()
    target = folder / "bundle"
    faults: list[str] = []
    moments = {overwrite: _moments(checkpoint, target, overwrite) for overwrite in (False, True)}
    complete = absent = former = 0
    for number in range(count):
        overwrite = number % 2 == 1
        point = 1 + round(number * (moments[overwrite] - 1) / max(1, count - 1))
        name = f"kill at {point} of {moments[overwrite]}{', overwriting' if overwrite else ''}"
        shutil.rmtree(folder)
        folder.mkdir()
        if overwrite:
            shutil.copytree(reference, target)
            (target / "former").touch()
        status = _forked(checkpoint, target, overwrite, kill_at=point)
        if status != -signal.SIGKILL:
            faults.append(f"{name}: the export ended with status {status}")
        for found in folder.iterdir():
            if found.is_dir() and opens(found) and not same(found, reference):
                faults.append(f"{name}: {found.name} can be loaded and is half-written")
        if not target.exists():
            absent += 1
        elif (target / "former").exists():
            former += 1
        else:
            complete += 1
        _reclaim(folder)
        left = sorted(os.listdir(folder))
        if left not in ([], ["bundle"]) or (overwrite and left != ["bundle"]):
            faults.append(f"{name}: after the next run there is {left}")
        if target.exists() and not opens(target):
            faults.append(f"{name}: after the next run the bundle cannot be loaded")
        export_tiny(checkpoint, target, overwrite=True)
        if not same(target, reference) or sorted(os.listdir(folder)) != ["bundle"]:
            faults.append(f"{name}: the next export differs")
    return {
        "count": count,
        "moments": moments[False],
        "moments_overwriting": moments[True],
        "target_absent": absent,
        "target_former": former,
        "target_complete": complete,
        "wall_s": round(time.perf_counter() - started, 1),
        "faults": faults[:20],
    }


def _reclaim(folder: Path) -> None:
    """The next run, to another place in the same folder."""
    from varco_export.writing.whole_folder import whole_folder

    with whole_folder(folder / "next"):
        pass
    (folder / "next").rmdir()


def _moments(checkpoint: Path, target: Path, overwrite: bool) -> int:
    """How many times an undisturbed export touches the disk."""
    counted = target.with_name("moments")
    status = _forked(checkpoint, target, overwrite, kill_at=0, counted=counted)
    assert status == 0, f"Bug: an undisturbed export ended with status {status}"
    return int(counted.read_text())


def _forked(checkpoint: Path, target: Path, overwrite: bool, kill_at: int, counted: Path | None = None) -> int:
    """Export in a child that kills itself before its `kill_at`-th write, open, rename, mkdir, unlink or lock."""
    from varco_export.export import ExportOptions, export  # imported here, so that no child pays for it
    from varco_export.progress import Silent

    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        moments = _count_moments(target.parent, kill_at)
        export(checkpoint, target, ExportOptions(overwrite=overwrite), Silent())
        total = moments()
        if counted is not None:
            counted.write_text(str(total))
        status = 0
    finally:
        os._exit(status)


def _count_moments(folder: Path, kill_at: int) -> Callable[[], int]:
    """Count what this process does to `folder` from now on, and kill it at the moment asked for."""
    from varco_export.writing.hashed_file import HashedFile

    moments = itertools.count(1)
    last = 0

    def step(before: Callable[[], object] = lambda: None) -> None:
        nonlocal last
        last = next(moments)
        if last == kill_at:
            before()
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock"):
            step()

    whole_write = HashedFile.write

    def write(self: HashedFile, data: bytes | memoryview) -> int:
        step(lambda: whole_write(self, memoryview(data)[: len(data) // 2]))  # killed in the middle of a write
        return whole_write(self, data)

    HashedFile.write = write  # type: ignore[method-assign]
    sys.addaudithook(audit)
    return lambda: last
