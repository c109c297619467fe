"""A peer's process, seen from the benchmark. The protocol is that of `benchmarks.peer.protocol`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]


class PeerError(Exception):
    """A peer does not install, does not run, or takes too long: one line that says which."""


class PeerProcess:
    """One peer, running. Ends with the `with` block."""

    def __init__(self, python: Path, module: str, log: IO[str]) -> None:
        ours = os.pathsep.join(str(ROOT / name) for name in ("export", "runtime"))
        path = f"{ROOT}{os.pathsep}{ours}" if module == "benchmarks.peer.ours" else str(ROOT)
        # Threads are what `load` says, for everybody; libraries read this variable in different places.
        inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        self._process = subprocess.Popen(
            [str(python), "-m", module],
            cwd=ROOT,
            env={**inherited, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def request(self, timeout_s: float, **request: Any) -> dict[str, Any]:
        """Send `request`, return the answer. Raises `PeerError`, also when `timeout_s` have passed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(timeout_s, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            expired = not timer.is_alive()
            timer.cancel()
        if not line:
            status = self._process.wait()
            why = f"took more than {timeout_s:.0f} s" if expired else f"ended with status {status}"
            raise PeerError(f"{request['do']}: its process {why}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{request['do']}: {answer['error']}")
        ok: dict[str, Any] = answer["ok"]
        return ok

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()  # the end of its input: it stops by itself
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
