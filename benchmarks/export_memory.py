"""How much memory, time and disk an export takes, on a checkpoint of the real shape whose zeros take no disk.

    python -m benchmarks.export_memory                                    # the 14B in int4: the limit is 3 GB
    python -m benchmarks.export_memory --shape 0.5b --decoder fp32
    python -m benchmarks.export_memory --quantised gptq --limit-gb 2      # a GPTQ checkpoint with act-order

Makes the sparse checkpoint, exports it in a process of its own, and removes both. Peak memory is that process's
`ru_maxrss`. The checkpoint is read from a hole, so what is measured is conversion, hashing and writing; the disk's own
speed and that of sha256 are measured first, as the ceilings. Prints a table and ends with one JSON line; exit status 1
when the peak is not below `--limit-gb`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.document import add_out, finish

# This process imports nothing heavy: Linux counts what the parent held when it forked into the child's ru_maxrss.

DISK_PROBE_BYTES = 1 << 30
HASH_PROBE_BYTES = 256 << 20


def main() -> int:
    options = _parser().parse_args()
    if options.child:
        _export(options)
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="export-memory-", dir=options.folder))
    try:
        report = _measure(folder, options)
    finally:
        shutil.rmtree(folder)
    _print(report)
    finish(report, options.out)
    return 0 if report["peak_rss_bytes"] < report["limit_bytes"] else 1


def _measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    write_ceiling = _disk_bytes_per_s(folder)
    hash_ceiling = _sha256_bytes_per_s()
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    make = [
        sys.executable,
        "-m",
        "varco_export.tiny",
        checkpoint,
        "--shape",
        options.shape,
        "--dtype",
        "bf16",
        "--sparse",
    ]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    if options.quantised:  # in a process of its own: see the imports
        code = (
            "import sys, pathlib; from benchmarks import sparse_gptq; sparse_gptq.make_gptq(pathlib.Path(sys.argv[1]))"
        )
        subprocess.run([sys.executable, "-c", code, checkpoint], check=True)

    started = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.export_memory", "--child", checkpoint, bundle, *sys.argv[1:]]
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - started
    if child.returncode:
        raise SystemExit(f"The export ended with status {child.returncode}.")

    from varco_runtime.system.processor import cpu_name  # now that the child has ended

    read_bytes = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    bundle_bytes = sum(path.stat().st_size for path in bundle.iterdir())
    largest = max(bundle.iterdir(), key=lambda path: path.stat().st_size)
    return {
        "benchmark": "export_memory",
        "shape": options.shape,
        "decoder": options.decoder,
        "quantised": options.quantised,
        "vision": options.vision,
        "machine": f"{psutil.cpu_count()} x {cpu_name()}, Python {platform.python_version()}",
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "limit_bytes": int(options.limit_gb * 1e9),
        "wall_s": round(wall_s, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "checkpoint_bytes": read_bytes,
        "bundle_bytes": bundle_bytes,
        "largest_file": {"name": largest.name, "bytes": largest.stat().st_size},
        "read_bytes_per_s": round(read_bytes / wall_s),
        "write_bytes_per_s": round(bundle_bytes / wall_s),
        "ceiling_write_bytes_per_s": round(write_ceiling),
        "ceiling_sha256_bytes_per_s": round(hash_ceiling),
    }


def _export(options: argparse.Namespace) -> None:
    """The measured process: nothing but an export."""
    from varco_export.export import ExportOptions, export

    export_options = ExportOptions(
        decoder="auto" if options.quantised else options.decoder,
        vision=options.vision,
        block_size=options.block_size,
        activations=options.activations,
    )
    export(options.child[0], options.child[1], export_options, _Lines())


class _Lines:
    """Export progress as a line per component."""

    @contextlib.contextmanager
    def component(self, name: str, steps: int) -> Iterator[Callable[[], None]]:
        started = time.perf_counter()
        yield lambda: None
        print(f"{name}: {steps} steps in {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)


def _disk_bytes_per_s(folder: Path) -> float:
    """Sequential writes that reach the disk."""
    block = bytes(16 << 20)
    path = folder / "probe"
    started = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(DISK_PROBE_BYTES // len(block)):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return DISK_PROBE_BYTES / seconds


def _sha256_bytes_per_s() -> float:
    block, digest = bytes(4 << 20), hashlib.sha256()
    started = time.perf_counter()
    for _ in range(HASH_PROBE_BYTES // len(block)):
        digest.update(block)
    return HASH_PROBE_BYTES / (time.perf_counter() - started)


def _print(report: dict[str, Any]) -> None:
    def mb(key: str) -> str:
        return f"{report[key] / 1e6:.0f} MB/s"

    def gb(key: str) -> str:
        return f"{report[key] / 1e9:.2f} GB"

    ceilings = f"the disk alone {mb('ceiling_write_bytes_per_s')}, sha256 alone {mb('ceiling_sha256_bytes_per_s')}"
    rows = [
        ("peak resident memory", gb("peak_rss_bytes"), f"limit {gb('limit_bytes')}"),
        ("wall time", f"{report['wall_s']:.0f} s", f"processor {report['cpu_s']:.0f} s"),
        ("checkpoint read", gb("checkpoint_bytes"), f"{mb('read_bytes_per_s')}, from a hole in the file"),
        ("bundle written", gb("bundle_bytes"), f"{mb('write_bytes_per_s')}; {ceilings}"),
    ]
    print(f"Export of a {report['shape']} checkpoint, decoder {report['decoder']}, vision {report['vision']}")
    for name, value, note in rows:
        print(f"  {name:<22}{value:>10}   {note}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the memory, time and disk of an export.")
    parser.add_argument("--shape", default="14b", choices=("0.5b", "7b", "14b", "72b"))
    parser.add_argument("--decoder", default="int4", help="fp32, fp16, int8 or int4")
    parser.add_argument("--quantised", choices=("gptq",), help="of a checkpoint that is quantised; --decoder is auto")
    parser.add_argument("--vision", default="auto", help="auto, fp32 or fp16")
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--activations", default="float", choices=("float", "int8"))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where there is room")
    parser.add_argument("--limit-gb", type=float, default=3.0, help="the peak must stay below this")
    add_out(parser)
    parser.add_argument("--child", type=Path, nargs=2, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
