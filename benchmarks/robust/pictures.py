"""Mutated pictures through `load_picture` and `tile`, in a process of its own, which is this file run as a module."""

from __future__ import annotations

import faulthandler
import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
import psutil

from benchmarks.robust.mutations import mutate, originals
from varco_runtime.bundle.settings import ImageSettings
from varco_runtime.errors import ImageError
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.tiles import tile
from varco_runtime.system.memory import peak_memory_bytes

MAX_GROWTH_BYTES = 100_000_000
_GRIDS = tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7))
VARCO = ImageSettings(384, 14, _GRIDS, 9, (0.5,) * 3, (0.5,) * 3, 1 / 255)


def mutated_pictures(seed: int, count: int) -> dict[str, Any]:
    """Run the pictures in a process of its own, so that a crash is seen and memory is that of pictures alone."""
    command = [sys.executable, "-m", "benchmarks.robust.pictures", str(seed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"count": count, "faults": [f"ended with status {done.returncode}: {done.stderr[-500:]}"]}
    report: dict[str, Any] = json.loads(done.stdout)
    if done.stderr:
        report["faults"].append(f"printed {done.stderr[:200]!r}")
    if report["growth_bytes"] > MAX_GROWTH_BYTES:
        report["faults"].append(f"resident memory grew by {report['growth_bytes']} bytes")
    return report


def _work(seed: int, count: int) -> None:
    """Open `count` mutated pictures and print what became of them."""
    faulthandler.enable()
    files = originals(seed)
    faults: list[str] = []
    outcomes = {"original": 0, "decoded": 0, "refused": 0}
    for name, data in files:  # also warms up decoders, resizers and the allocator
        if _try(data, name, faults) != "decoded":
            faults.append(f"{name} could not be opened unharmed")
        outcomes["original"] += 1
    before = largest = _resident_bytes()
    started = time.perf_counter()
    generator = np.random.default_rng([seed, 1])
    for index in range(count):
        name, data = files[index % len(files)]
        other = files[int(generator.integers(len(files)))][1]
        mutated, how = mutate(data, other, generator)
        outcomes[_try(mutated, f"picture {index}, {name}, {how}", faults)] += 1
        if index % 50 == 49:
            largest = max(largest, _resident_bytes())
    report = {
        "count": count,
        "formats": len(files),
        **outcomes,
        "growth_bytes": max(largest, _resident_bytes()) - before,
        "limit_bytes": MAX_GROWTH_BYTES,
        "peak_bytes": peak_memory_bytes(),
        "wall_s": round(time.perf_counter() - started, 1),
        "faults": faults[:20],
    }
    print(json.dumps(report))


def _try(data: bytes, name: str, faults: list[str]) -> str:
    """Open and tile; anything but a picture or one line of `ImageError` is a fault."""
    try:
        picture = load_picture(data)
        tiles = tile(picture, VARCO)
    except ImageError as error:
        if "\n" in str(error) or len(str(error)) > 400:
            faults.append(f"{name}: not one line: {str(error)[:300]!r}")
        return "refused"
    except Exception as error:
        faults.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        return "refused"
    if tiles.dtype != np.uint8 or tiles.shape[1:] != (3, 384, 384):
        faults.append(f"{name}: tiles {tiles.dtype} {tiles.shape}")
    return "decoded"


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    _work(*map(int, sys.argv[1:]))
