"""Bundles whose files are flipped, cut, lengthened, exchanged and replaced."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.robust.bundles import opens, same
from varco_runtime.bundle.opening import check_file, read_manifest
from varco_runtime.bundle.schema import MANIFEST
from varco_runtime.bundle.verified import Remembered
from varco_runtime.errors import BundleError

SMALL_FILE_BYTES = 64 << 10
"""Every position of files up to this size is flipped; larger ones at `NUM_SAMPLED` positions and both ends."""
NUM_SAMPLED = 2000
EDGE_BYTES = 64


def damaged_bundles(reference: Path, folder: Path, seed: int, stride: int) -> dict[str, Any]:
    """Flip, cut, exchange and replace the files of a bundle; `stride` thins the flips out."""
    started = time.perf_counter()
    shutil.copytree(reference, folder)
    faults: list[str] = []
    names = [MANIFEST, *sorted(read_manifest(folder).files)]
    generator = np.random.default_rng([seed, 2])
    flips = {name: _flips(folder, name, generator, stride, faults) for name in names}
    exhaustive = [name for name in names if flips[name] == (folder / name).stat().st_size]
    others = dict.fromkeys(("lengths", "swaps", "links", "others"), 0)

    def expect_refusal(kind: str, what: str) -> None:
        others[kind] += 1
        if opens(folder):
            faults.append(f"{what} was not refused")

    for name in names:
        path = folder / name
        aside = folder.with_name("aside")
        size = path.stat().st_size
        for length in {0, 1, size // 2, size - 1, size + 1, *map(int, generator.integers(0, size, 16))}:
            shutil.copy(path, aside)
            os.truncate(path, length)
            expect_refusal("lengths", f"{name} of {length} bytes")
            os.replace(aside, path)
        os.rename(path, aside)
        expect_refusal("others", f"a missing {name}")
        for link in (aside, reference / name, "nowhere", name):
            path.symlink_to(link)
            expect_refusal("links", f"{name} as a link to {link}")
            path.unlink()
        os.mkfifo(path)
        expect_refusal("others", f"{name} as a pipe")
        path.unlink()
        path.mkdir()
        expect_refusal("others", f"{name} as a folder")
        path.rmdir()
        os.rename(aside, path)
    for one, other in itertools.combinations(names, 2):
        _exchange(folder / one, folder / other)
        expect_refusal("swaps", f"{one} and {other} exchanged")
        _exchange(folder / one, folder / other)
    if not opens(folder) or not same(folder, reference):
        faults.append("the restored bundle does not open")
    return {
        "flips": sum(flips.values()),
        "files": len(names),
        "every_byte_of": exhaustive,
        "sampled": {name: flips[name] for name in names if name not in exhaustive},
        **others,
        "wall_s": round(time.perf_counter() - started, 1),
        "faults": faults[:20],
    }


def _exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    for source, goal in ((one, aside), (other, one), (aside, other)):
        os.rename(source, goal)


def _flips(folder: Path, name: str, generator: np.random.Generator, stride: int, faults: list[str]) -> int:
    """Flip one bit of one byte at a time, in place; returns at how many positions."""
    path = folder / name
    raw = path.read_bytes()
    if len(raw) <= SMALL_FILE_BYTES:
        positions = range(0, len(raw), stride)
    else:
        ends = (*range(EDGE_BYTES), *range(len(raw) - EDGE_BYTES, len(raw)))
        sampled = map(int, generator.integers(0, len(raw), NUM_SAMPLED // stride))
        positions = sorted({*ends, *sampled})  # type: ignore[assignment]
    manifest, remembered = read_manifest(folder), Remembered({})
    with open(path, "r+b", buffering=0) as file:
        for position in positions:
            flipped = raw[position] ^ 1 << int(generator.integers(8))
            os.pwrite(file.fileno(), bytes([flipped]), position)
            try:
                if name == MANIFEST:
                    read_manifest(folder)
                else:
                    check_file(folder, name, manifest.files[name], remembered, full=True)
                faults.append(f"{name} with byte {position} as {flipped} was not refused")
            except BundleError:
                pass
            os.pwrite(file.fileno(), raw[position : position + 1], position)
    return len(positions)
