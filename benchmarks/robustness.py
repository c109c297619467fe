"""How well pictures, exports and bundles stand what a hostile file, a killed process and a full disk do to them.

    python -m benchmarks.robustness [--quick] [--seed 1]

- 10,000 mutated pictures of every usual format, mode and shape go through `load_picture` and `tile`: each ends as a
  picture or as an `ImageError` of one line, nothing is printed, and resident memory grows by at most 100 MB.
- 10,000 more go through the server's picture process (`varco_serve.pictures`): each answer is `load_picture`'s, pixel
  by pixel, or one line without a path or a class; the process is there at the end and has grown by at most 100 MB.
- An export is killed with SIGKILL at 50 points spread over everything it does to the disk, every second one while it
  overwrites a former bundle: nothing half-written can be loaded, and the next run removes what was left.
- The disk is full at 10 points of an export: one line, and nothing is left.
- Every byte of a bundle's small files and of its manifest is flipped (large files: at sampled positions), files are
  cut, lengthened, exchanged, and replaced by links, pipes and folders: each is refused.

Everything is drawn from `--seed`. Prints a table and ends with one JSON line; exit status 1 if anything did not hold.
A hard link is not among the links: it is the file itself, and its content is hashed like any other.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # exports are forked from this process, which must have one thread

import PIL
import psutil

from benchmarks.document import add_out, finish
from benchmarks.robust.bundles import make_reference
from benchmarks.robust.damage import damaged_bundles
from benchmarks.robust.full_disks import full_disks
from benchmarks.robust.kills import killed_exports
from benchmarks.robust.picture_process import mutated_in_process
from benchmarks.robust.pictures import mutated_pictures

Report = dict[str, Any]


def main() -> int:
    options = _parser().parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="robustness-") as name:
        folder = Path(name)
        os.environ["VARCO_EDGE_CACHE"] = str(folder / "cache")
        checkpoint, reference = make_reference(folder, options.seed)
        report: Report = {
            "benchmark": "robustness",
            "seed": options.seed,
            "machine": f"{psutil.cpu_count()} x {platform.machine()}, Python {platform.python_version()}, "
            f"Pillow {PIL.__version__}",
            "pictures": mutated_pictures(options.seed, 500 if options.quick else 10_000),
            "picture_process": mutated_in_process(options.seed, 500 if options.quick else 10_000),
            "kills": killed_exports(checkpoint, reference, folder / "kills", 10 if options.quick else 50),
            "full_disks": full_disks(checkpoint, reference, folder / "disks", 3 if options.quick else 10),
            "damage": damaged_bundles(reference, folder / "damage", options.seed, 97 if options.quick else 1),
        }
    report["wall_s"] = round(time.perf_counter() - started, 1)
    parts = [part for part in report.values() if isinstance(part, dict)]
    report["ok"] = not any(part["faults"] for part in parts)
    _print(report)
    finish(report, options.out)
    return 0 if report["ok"] else 1


def _print(report: Report) -> None:
    pictures, kills, disks, damage = (report[name] for name in ("pictures", "kills", "full_disks", "damage"))
    rows: list[tuple[str, str]] = []
    if "decoded" in pictures:
        rows += [
            ("mutated pictures", f"{pictures['count']:,} of {pictures['formats']} originals: "
             f"{pictures['decoded']:,} opened, {pictures['refused']:,} refused in one line"),
            ("resident memory", f"grew by {pictures['growth_bytes'] / 1e6:.1f} MB (limit "
             f"{pictures['limit_bytes'] / 1e6:.0f} MB), peak {pictures['peak_bytes'] / 1e6:.0f} MB"),
        ]  # fmt: skip
    served = report["picture_process"]
    rows.append(
        ("picture process", f"{served['count']:,} of {served['originals']} originals as load_picture; resident "
         f"{served['resident_bytes'] / 1e6:.0f} MB, grew by {served['growth_bytes'] / 1e6:.1f} MB (limit "
         f"{served['limit_bytes'] / 1e6:.0f} MB)")
    )  # fmt: skip
    ends = f"absent {kills['target_absent']}, former {kills['target_former']}, complete {kills['target_complete']}"
    moments = f"{kills['moments']} moments ({kills['moments_overwriting']} when overwriting)"
    rows += [
        ("killed exports", f"{kills['count']} of {moments}; the bundle was then {ends}, never half"),
        ("full disks", f"{disks['count']} ({disks['disk']}), each one line with nothing left"),
        ("flipped bytes", f"{damage['flips']:,} in {damage['files']} files; sampled: {damage['sampled']}"),
        ("other damage", f"{damage['lengths']} lengths, {damage['swaps']} swaps, {damage['links']} links, "
         f"{damage['others']} missing, pipes and folders"),
    ]  # fmt: skip
    for name, text in rows:
        print(f"  {name:<18}{text}")
    for part in ("pictures", "picture_process", "kills", "full_disks", "damage"):
        for fault in report[part]["faults"]:
            print(f"  FAULT in {part}: {fault}")
    print(f"  {'in all':<18}{'everything held' if report['ok'] else 'NOT everything held'}, {report['wall_s']:.0f} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure how well pictures, exports and bundles stand damage.")
    parser.add_argument("--quick", action="store_true", help="a twentieth of everything")
    parser.add_argument("--seed", type=int, default=1)
    add_out(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
