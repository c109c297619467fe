"""llama.cpp's server, llama-cpp-python's, beside ours: one text model, the same questions, an environment of its own.

That server answers one request after the other; `varco serve` has slots. So one caller compares the two engines behind
HTTP, and several what a queue and what slots make of them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.load.client import Client, Outcome
from benchmarks.load.figures import summary
from benchmarks.load.loops import closed_loop
from benchmarks.load.questions import Questions
from benchmarks.load.server import READY_S, Server, server_options
from benchmarks.peer.environments import Environment, interpreter
from benchmarks.peer.material import make_material
from benchmarks.peer.ours import BUNDLES, make_bundle
from benchmarks.peer.process import ROOT, PeerError

ENVIRONMENT = Environment("llama-cpp-server", 0.3, ("llama-cpp-python[server]==0.3.36", "gguf==0.19.0", "numpy"))
CALLERS = (1, 4, 8)
CONTEXT = 1024
BUNDLE = "int4-a8-head4"
_WRITE = "import sys; from pathlib import Path; from benchmarks.peer.llama_cpp import write_gguf; "
_WRITE += "write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), 'Q4_0', 'Q4_0', has_text=True)"


def beside_peer(options: argparse.Namespace, log: Path) -> dict[str, Any]:
    """Measure both servers, one after the other; say why where llama.cpp's does not install or run.

    Args:
        options: The benchmark's own.
        log: The file that takes what our server prints.
    """
    material = options.environments / "material" / options.peer_shape
    make_material(material, options.peer_shape)
    found: dict[str, Any] = {"shape": options.peer_shape, "context": CONTEXT, "bundle": BUNDLE, "gguf": "Q4_0"}
    try:
        with LlamaServer(material, options.environments, options.threads, log.with_name("llama.log")) as peer:
            servers = {"llama.cpp": _measured(peer.host, peer.port, options)}
            found["llama_cpp_bytes"] = peer.resident_bytes()
    except PeerError as error:
        return {**found, "left_out": str(error)}
    bundle = make_bundle(material, BUNDLE, *BUNDLES[BUNDLE])
    with Server(bundle, log, *server_options(options), "--max-context", str(CONTEXT)) as server:
        server.wait_for("/health/ready")
        servers["varco serve"] = _measured(server.host, server.port, options)
        found["varco_bytes"] = server.resident_bytes()
    return {**found, "servers": servers}


def _measured(host: str, port: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    first = Questions("text", options.seed, options.tokens).next().body()
    asyncio.run(closed_loop(host, port, lambda: first, 1, 1))  # warms up
    for callers in CALLERS:
        questions = Questions("text", options.seed + callers, options.tokens)
        loop = closed_loop(host, port, lambda asked=questions: asked.next().body(), callers, callers * options.requests)
        outcomes = asyncio.run(loop)
        for outcome in outcomes:
            _count(outcome, options.tokens)
        rows.append({"callers": callers, "server": summary(outcomes)})
    return rows


def _count(outcome: Outcome, max_tokens: int) -> None:
    """Count the tokens of an answer whose server does not: all that were asked for, or a piece for each."""
    if not outcome.num_tokens:
        outcome.num_tokens = max_tokens if outcome.finish_reason == "length" else len(outcome.pieces_s)


class LlamaServer:
    """llama-cpp-python's server with a text model in Q4_0, until the `with` block ends.

    Args:
        material: The checkpoint's folder, of `benchmarks.peer.material`.
        environments: Where environments are made.
        threads: Threads; None for all usable cores.
        log: The file that takes what it prints.

    Raises:
        PeerError: It does not install, or does not start.
    """

    def __init__(self, material: Path, environments: Path, threads: int | None, log: Path) -> None:
        python = interpreter(ENVIRONMENT, environments)
        model = material / "llama_cpp" / "text-q4.gguf"
        if not model.exists():
            model.parent.mkdir(exist_ok=True)
            partial = model.with_suffix(".partial")
            command = [str(python), "-c", _WRITE, str(material / "text"), str(partial)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise PeerError(f"its model cannot be written: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]}")
            partial.rename(model)
        self.host, self.port = "127.0.0.1", _free_port()
        settings = {
            "model": model,
            "host": self.host,
            "port": self.port,
            "n_ctx": CONTEXT,
            "n_threads": threads or len(os.sched_getaffinity(0)),
            "n_threads_batch": threads or len(os.sched_getaffinity(0)),
            "chat_format": "chatml",
            "interrupt_requests": False,
            "verbose": False,
        }
        given = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        with open(log, "wb") as file:
            command = [str(python), "-m", "llama_cpp.server", *given]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        try:
            self._wait(log)
        except PeerError:
            self.close()
            raise

    def _wait(self, log: Path) -> None:
        until_s = time.perf_counter() + READY_S
        while time.perf_counter() < until_s:
            if self._process.poll() is not None:
                last = (log.read_text("utf-8", "replace").strip().splitlines() or ["it printed nothing"])[-1]
                raise PeerError(f"it ended with status {self._process.returncode}: {last[:200]}")
            if asyncio.run(_models(self.host, self.port)).status == 200:
                return
            time.sleep(0.1)
        raise PeerError(f"it did not answer within {READY_S:g} s")

    def resident_bytes(self) -> int:
        """Return its resident memory, mapped files included."""
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> LlamaServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def _models(host: str, port: int) -> Outcome:
    client = Client(host, port)
    try:
        return await client.get("/v1/models")
    finally:
        client.close()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
