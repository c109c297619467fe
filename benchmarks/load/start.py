"""A server that is started and left alone: how soon it lives and is ready, what it takes while nobody asks."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.load.server import Server
from benchmarks.machine import spread

MAX_LIVE_S = 1.0
MAX_MORE_READY_S = 1.0
MAX_IDLE_SHARE = 0.02
MAX_FRONT_BYTES = 150_000_000
MORE_WORKER_BYTES = 50_000_000

_RUN = """
import json, sys
import psutil
from varco_runtime import Varco
bundle, threads, max_context = json.loads(sys.argv[1])
varco = Varco.load(bundle, threads=threads, max_context=max_context)
varco.ask(None, "What do you see?", max_new_tokens=8)
print(json.dumps(psutil.Process().memory_info().rss))
"""


def starts(bundle: Path, log: Path, options: list[str], rounds: int) -> dict[str, Any]:
    """Start a server several times and return the seconds until it lives and until it is ready.

    Args:
        bundle: The bundle's folder.
        log: The file that takes what the server prints.
        options: Options of `varco serve`.
        rounds: How often.
    """
    live, ready, load = [], [], []
    for _ in range(rounds):
        with Server(bundle, log, *options) as server:
            live.append(server.wait_for("/health/live"))
            ready.append(server.wait_for("/health/ready"))
            load.append(float(json.loads(server.get("/v1/metadata")[1])["load_s"]))
    return {
        "live_s": spread(live, 3),
        "ready_s": spread(ready, 3),
        "load_s": spread(load, 3),
        "limit_live_s": MAX_LIVE_S,
        "limit_ready_s": round(spread(load, 3)["median"] + MAX_MORE_READY_S, 3),
    }


def idle(server: Server, seconds: float) -> dict[str, Any]:
    """Return the share of a core that a server takes while nobody asks.

    Args:
        server: A server that is ready.
        seconds: For how long it is watched.
    """
    before = server.cpu_s()
    time.sleep(seconds)
    after = server.cpu_s()
    shares = {role: round((after[role] - before[role]) / seconds, 4) for role in before}
    return {"seconds": seconds, "shares": shares, "share": round(sum(shares.values()), 4), "limit": MAX_IDLE_SHARE}


def memory(
    server: Server, options: argparse.Namespace, at_start: dict[str, int], after_texts: dict[str, int]
) -> dict[str, Any]:
    """Return what each process holds, at its start and after the load, beside what it may.

    Args:
        server: A server that has been asked a lot.
        options: The benchmark's own: `bundle`, `threads` and `max_context`, as it was started with.
        at_start: What its processes held before.
        after_texts: What they held before they were shown pictures, of which the worker remembers up to 512 MB.
    """
    command = [sys.executable, "-c", _RUN, json.dumps([str(options.bundle), options.threads, options.max_context])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    run_bytes = int(json.loads(done.stdout))
    cache_bytes = int(json.loads(server.get("/v1/metadata")[1])["cache_bytes"])
    now = server.resident_bytes()
    return {
        "at_start_bytes": at_start,
        "after_texts_bytes": after_texts,
        "after_load_bytes": now,
        "front_and_pictures_bytes": now["front"] + now["pictures"],
        "limit_front_and_pictures_bytes": MAX_FRONT_BYTES,
        "run_bytes": run_bytes,
        "cache_bytes": cache_bytes,
        "limit_worker_bytes": run_bytes + cache_bytes + MORE_WORKER_BYTES,
    }
