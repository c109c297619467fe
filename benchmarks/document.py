"""The JSON that a benchmark ends with: one line on standard output, and a whole file where one is asked for.

Imports next to nothing: benchmarks that measure a child's memory must hold little themselves.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add the option `--out`, refused before anything is measured where its folder does not exist."""
    parser.add_argument("--out", type=_target, metavar="FILE", help="the JSON, whole or not at all")


def finish(report: dict[str, Any], out: Path | None) -> None:
    """Write `report` to `out`, if that is given, and print it as the last line."""
    if out is not None:
        write_json(out, report)
    print(json.dumps(report))


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data` to `path`, whole or not at all."""
    write_whole(path, (json.dumps(data, indent=1) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _target(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent} is not a folder, expected one to write {path.name} into")
    return path
