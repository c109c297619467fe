"""How long a user waits for the first token of a fresh process: start, import, load, first token.

    python -m benchmarks.startup --out benchmarks/startup.json
    python -m benchmarks.startup BUNDLE --runs 11

Each run is a process of its own, with the files in the system's cache and their hashes remembered, as from the second
run on. The floor beside it is a process that imports what the runtime needs and nothing of this project, which every
second run does. Prints a table, ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.document import add_out, finish
from benchmarks.machine import describe_machine, spread
from varco_cli.commands.demo import BUNDLE, draw_sign
from varco_runtime.bundle.opening import read_manifest

TIMEOUT_S = 600
# The monotonic clock is the system's, so that a child can tell when its parent started it.
CHILD = """
import time; began = time.monotonic()
import json, sys
import varco_runtime; package = time.monotonic()
from varco_runtime import Varco; imported = time.monotonic()
varco = Varco.load(sys.argv[2]); loaded = time.monotonic()
varco.ocr(sys.argv[3], max_new_tokens=1); answered = time.monotonic()
print(json.dumps({
    "interpreter_s": began - float(sys.argv[1]), "package_s": package - began, "import_s": imported - began,
    "load_s": loaded - imported, "first_token_s": answered - loaded, "total_s": answered - float(sys.argv[1]),
}))
"""
FLOOR = """
import time; began = time.monotonic()
import json, sys
import numpy, onnxruntime, tokenizers, jinja2, PIL.Image
print(json.dumps({"libraries_s": time.monotonic() - began}))
"""
MEANINGS = {
    "interpreter_s": "the interpreter starts",
    "package_s": "import varco_runtime",
    "import_s": "from varco_runtime import Varco",
    "load_s": "Varco.load",
    "first_token_s": "a picture, to its first token",
    "total_s": "all of it",
    "libraries_s": "floor: numpy, onnxruntime, tokenizers, jinja2, Pillow alone",
}


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    read_manifest(options.bundle)  # what is no bundle is said once, and not by a process for each run
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "sign.png"
        draw_sign()[0].save(picture)
        found: dict[str, list[float]] = {}
        for number in range(options.runs + 1):
            for code in (CHILD, FLOOR):
                for name, seconds in _fresh(code, options.bundle, picture).items():
                    if number:  # the first one fills the caches
                        found.setdefault(name, []).append(seconds)
    report = {
        "benchmark": "startup",
        "machine": describe_machine(),
        "versions": {name: metadata.version(name) for name in ("onnxruntime", "numpy", "tokenizers", "pillow")},
        "bundle": options.bundle.name,
        "bundle_bytes": sum(path.stat().st_size for path in options.bundle.rglob("*") if path.is_file()),
        "runs": options.runs,
        "seconds": {name: spread(values) for name, values in found.items()},
    }
    print_report(report)
    finish(report, options.out)
    return 0


def _fresh(code: str, bundle: Path, picture: Path) -> dict[str, float]:
    command = [sys.executable, "-c", code, str(time.monotonic()), str(bundle), str(picture)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, env=dict(os.environ)
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def print_report(report: dict[str, Any]) -> None:
    """A table for people, in Markdown."""
    print(f"{report['bundle']}, {report['bundle_bytes'] / 1e6:.0f} MB, medians of {report['runs']} fresh processes\n")
    print("| | ms | least | largest |\n|---|---|---|---|")
    for name, values in report["seconds"].items():
        cells = [f"{1e3 * values[which]:.0f}" for which in ("median", "min", "max")]
        print(f"| {MEANINGS[name]} | {' | '.join(cells)} |")
    print()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description="Measure a fresh process.")
    parser.add_argument("bundle", nargs="?", type=Path, default=BUNDLE, help="default: the package's demo bundle")
    parser.add_argument("--runs", type=int, default=11)
    add_out(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
