"""`varco serve` under load: what it adds to the engine, what it refuses and how soon, and what it takes.

    python -m benchmarks.serve --out benchmarks/serve.json                  # the demo's bundle, some minutes
    python -m benchmarks.serve BUNDLE --slots 8 --parts alone callers
    python -m benchmarks.serve --parts soak --soak 30
    python -m benchmarks.serve --quick                                      # does it run: small numbers of everything

The load comes from this project's own client, over raw HTTP/1.1 and in this process; beside it stands the engine alone,
`Varco` with as many slots in this process, in turns with the server. Parts:

- `start`: from the start to the first answer of `/health/live` and `/health/ready`; processor time while idle.
- `alone`: one caller, the same questions to engine and server: the first token, and the whole per token.
- `callers`: 1 to 64 callers in a closed loop, tokens a second beside the engine's with as many threads.
- `kinds`: texts, new pictures and repeated ones; then what each process holds.
- `overload`: an open loop at ten times what a server with a short queue takes: how soon it refuses.
- `half-open`: `/health` beside 500 connections that never end their header.
- `soak`: everything at once for `--soak` minutes, and a server that leaks, which must be found out.
- `peers`: llama.cpp's server (llama-cpp-python's) beside ours, a text model of one shape; an environment of its own.

Prints a table with the limit beside each figure and ends with one JSON line; status 1 if an answer was wrong, a process
was started again, or the soak did not hold. A figure beyond its limit is told, and no error: it depends on the machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import varco_runtime
from benchmarks.document import add_out, finish
from benchmarks.load.callers import kinds_of_questions, many_callers, one_caller
from benchmarks.load.overload import half_open, ten_times
from benchmarks.load.peer import beside_peer
from benchmarks.load.report import faults_of, print_report
from benchmarks.load.server import Server, quiet_environment, server_options
from benchmarks.load.soak import soak
from benchmarks.load.start import idle, memory, starts
from benchmarks.machine import describe_machine
from benchmarks.peers import DEFAULT_FOLDER
from varco_runtime import Varco

DEMO = Path(varco_runtime.__file__).parent / "demo_bundle"
PARTS = ("start", "alone", "callers", "kinds", "overload", "half-open", "soak", "peers")
QUICK = {
    "rounds": 3, "requests": 1, "callers": [1, 8], "tokens": 8, "seconds": 3.0, "soak": 0.5, "peer_shape": "tiny",
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.quick:
        for name, value in QUICK.items():
            setattr(options, name, value)
    quiet_environment()
    report: dict[str, Any] = {
        "benchmark": "serve",
        "machine": describe_machine(),
        "versions": {name: metadata.version(name) for name in ("onnxruntime", "uvicorn", "starlette", "pillow")},
        "bundle": options.bundle.name,
        "slots": options.slots,
        "threads": options.threads,
        "tokens": options.tokens,
    }
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        log = Path(folder) / "server.log"
        for part in options.parts:
            if part in _APART:
                report[part] = _APART[part](options, log)
        if {"alone", "callers", "kinds"} & set(options.parts):
            report |= _beside_engine(options, log)
    report["faults"] = faults_of(report)
    report["load_average_after"] = describe_machine()["load_average"]
    print_report(report)
    finish(report, options.out)
    return 1 if report["faults"] else 0


def _start(options: argparse.Namespace, log: Path) -> dict[str, Any]:
    found = starts(options.bundle, log, server_options(options), min(options.rounds, 5))
    with Server(options.bundle, log, *server_options(options)) as server:
        server.wait_for("/health/ready")
        return {**found, "idle": idle(server, options.seconds)}


def _overload(options: argparse.Namespace, log: Path) -> dict[str, Any]:
    with Server(options.bundle, log, *server_options(options), "--max-queue", "8") as server:
        server.wait_for("/health/ready")
        return ten_times(server, options.seconds, options.tokens, options.seed)


def _half_open(options: argparse.Namespace, log: Path) -> dict[str, Any]:
    with Server(options.bundle, log, *server_options(options)) as server:
        server.wait_for("/health/ready")
        return half_open(server, 6 * options.seconds)


def _soak(options: argparse.Namespace, log: Path) -> dict[str, Any]:
    return soak(options.bundle, log, server_options(options), options.soak, options.tokens, options.seed)


def _peers(options: argparse.Namespace, log: Path) -> dict[str, Any]:
    return beside_peer(options, log)


_APART: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "start": _start,
    "overload": _overload,
    "half-open": _half_open,
    "soak": _soak,
    "peers": _peers,
}
"""Parts that start a server of their own."""


def _beside_engine(options: argparse.Namespace, log: Path) -> dict[str, Any]:
    """Run the parts that one server and the engine in this process share."""
    found: dict[str, Any] = {}
    varco = Varco.load(options.bundle, slots=options.slots, threads=options.threads, max_context=options.max_context)
    with Server(options.bundle, log, *server_options(options), "--max-queue", "256") as server:
        server.wait_for("/health/ready")
        at_start = server.resident_bytes()
        if "alone" in options.parts:
            found["alone"] = one_caller(server, varco, 4 * options.rounds, options.tokens, options.seed)
        if "callers" in options.parts:
            found["callers"] = many_callers(
                server, varco, options.callers, options.requests, options.tokens, options.seed, options.rounds
            )
        after_texts = server.resident_bytes()
        if "kinds" in options.parts:
            found["kinds"] = kinds_of_questions(server, 4 * options.requests, 8, options.tokens, options.seed)
            found["memory"] = memory(server, options, at_start, after_texts)
        found["restarts"] = server.restarts()
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description="Measure varco serve under load.")
    parser.add_argument("bundle", nargs="?", type=Path, default=DEMO, help="default: the demo's")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[part for part in PARTS if part != "soak"])
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--threads", type=int, metavar="N", help="of server and engine; default: theirs")
    parser.add_argument("--max-context", type=int, metavar="N", help="tokens of a slot; default: the bundle's")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], metavar="N")
    parser.add_argument("--requests", type=int, default=4, help="of each caller and round")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of idling and overload; half-open takes six times it"
    )
    parser.add_argument("--soak", type=float, default=30.0, metavar="MINUTES")
    parser.add_argument("--peer-shape", default="0.5b", choices=("tiny", "0.5b"), help="of the text model of `peers`")
    parser.add_argument("--environments", type=Path, default=DEFAULT_FOLDER, metavar="DIR")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="small numbers of everything")
    add_out(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
