"""A server that the benchmark starts: its address, its three processes, and what they take."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

VARCO = "import sys; from varco_cli.main import main; sys.exit(main())"
"""The program `varco`, in this environment."""
READY_S = 600.0
ROLES = ("front", "pictures", "worker")


class ServerError(Exception):
    """The server does not start, or ends before it is told to: one line."""


class Server:
    """`varco serve` on a free port of this machine, until the `with` block ends.

    Args:
        bundle: The bundle's folder.
        log: The file that takes what it prints.
        options: Further options of the command.
        program: Python code that is run instead of `varco`'s, with the same arguments.
    """

    def __init__(self, bundle: Path, log: Path, *options: str, program: str = VARCO) -> None:
        self._log = log
        self.started_s = time.perf_counter()
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, "serve", str(bundle), "--port", "0", *options],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.host = "127.0.0.1"
        self.port = int(self._wait_for_line(r"Listening on http://[\d.]+:(\d+)"))

    def _wait_for_line(self, pattern: str) -> str:
        until_s = time.perf_counter() + READY_S
        while time.perf_counter() < until_s:
            found = re.search(pattern, self._log.read_text("utf-8", "replace"))
            if found:
                return found.group(1)
            if self.process.poll() is not None:
                last = self._log.read_text("utf-8", "replace").strip().splitlines()[-1:]
                raise ServerError(f"The server ended with status {self.process.returncode}: {''.join(last)[:300]}")
            time.sleep(0.005)
        raise ServerError(f"The server printed no address within {READY_S:g} s.")

    def get(self, path: str, timeout_s: float = 10.0) -> tuple[int, bytes]:
        """Return the status and the body of a request over a connection of its own; status 0 where there is none."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    def wait_for(self, path: str) -> float:
        """Wait until a path answers 200, and return the seconds since the start.

        Raises:
            ServerError: The server ended, or it took too long.
        """
        while time.perf_counter() - self.started_s < READY_S:
            if self.get(path)[0] == 200:
                return time.perf_counter() - self.started_s
            if self.process.poll() is not None:
                raise ServerError(f"The server ended with status {self.process.returncode} before {path} answered.")
            time.sleep(0.005)
        raise ServerError(f"{path} did not answer within {READY_S:g} s.")

    def processes(self) -> dict[str, psutil.Process]:
        """Return the processes that are there, by `ROLES`."""
        front = psutil.Process(self.process.pid)
        found = {"front": front}
        for child in front.children():
            with contextlib.suppress(psutil.Error):
                for role in ROLES[1:]:
                    if f"varco_serve.{role}" in child.cmdline():
                        found[role] = child
        return found

    def resident_bytes(self) -> dict[str, int]:
        """Return the resident memory of each process, mapped files included."""
        found = {}
        for role, process in self.processes().items():
            with contextlib.suppress(psutil.Error):
                found[role] = int(process.memory_info().rss)
        return found

    def cpu_s(self) -> dict[str, float]:
        """Return the processor time that each process has taken."""
        found = {}
        for role, process in self.processes().items():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                found[role] = float(times.user + times.system)
        return found

    def restarts(self) -> int:
        """Return how often a process of the server ended and was started again, by its log."""
        text = self._log.read_text("utf-8", "replace")
        return len(re.findall(r'"event": "(?:worker_died|pictures_ended)"', text))

    def stop(self) -> int:
        """End it with SIGTERM and return its status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return int(self.process.returncode)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def server_options(options: Any) -> list[str]:
    """Return the options of `varco serve` that every server of a run has.

    Args:
        options: The benchmark's own: `slots`, `threads`, `max_context`.
    """
    given = ["--slots", str(options.slots)]
    if options.threads is not None:
        given += ["--threads", str(options.threads)]
    if options.max_context is not None:
        given += ["--max-context", str(options.max_context)]
    return given


def quiet_environment() -> None:
    """Give children one thread of OpenBLAS, as the server's own have."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
