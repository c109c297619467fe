"""A real server in processes of its own, over the demo bundle."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

import varco_runtime

DEMO_BUNDLE = Path(varco_runtime.__file__).parent / "demo_bundle"
_START_S = 60.0
_ANSWER_S = 300.0
"""Longer than any answer takes on a machine that does ten other things."""


class RunningServer:
    """`varco serve`, started on a free port of loopback and ready.

    Args:
        options: Further options of the command.
        bundle: What it serves.
        command: What is put in front of the command, such as `("unshare", "-rn")`.
        wait: Whether to wait until the model has been loaded.

    Attributes:
        process: The front.
        url: Where it listens.
        lines: What it has said and logged so far.
    """

    def __init__(
        self, *options: str, bundle: Path = DEMO_BUNDLE, command: tuple[str, ...] = (), wait: bool = True
    ) -> None:
        arguments = ["-P", "-m", "varco_cli.main", "serve", str(bundle), "--port", "0", "--provider", "cpu", *options]
        self.process = subprocess.Popen(
            [*command, sys.executable, *arguments], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        self.lines: list[str] = []
        self._has_line = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self._found(r"Listening on (http://\S+),")
        self.client = httpx.Client(base_url=self.url, timeout=_ANSWER_S)
        if wait:
            self.until_ready()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(10)  # the children that hold the pipe's other end have ended too
        if self.process.stderr is not None:
            self.process.stderr.close()

    @property
    def pid(self) -> int:
        """The front's."""
        return self.process.pid

    @property
    def worker_pid(self) -> int | None:
        """The worker's, None while there is none."""
        return self._child("varco_serve.worker")

    @property
    def pictures_pid(self) -> int | None:
        """The picture process's, None while there is none."""
        return self._child("varco_serve.pictures")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The log's lines."""
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def until_ready(self) -> None:
        """Wait until it can answer."""
        until(lambda: self.client.get("/health/ready").status_code == 200)

    def post(self, path: str, **document: Any) -> httpx.Response:
        """Send JSON."""
        return self.client.post(path, json=document)

    def chat(self, content: Any, **fields: Any) -> httpx.Response:
        """Ask a question of one message."""
        return self.post("/v1/chat/completions", messages=[{"role": "user", "content": content}], **fields)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and return the status that it ends with."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def metric(self, name: str) -> float:
        """Return the value of a metric without labels."""
        found = re.search(rf"^{name} (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def _child(self, module: str) -> int | None:
        for child in psutil.Process(self.pid).children(recursive=True):
            try:
                if module in child.cmdline():
                    return child.pid
            except psutil.Error:  # it has just ended
                continue
        return None

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._has_line:
                self.lines.append(line.rstrip("\n"))
                self._has_line.notify_all()
        with self._has_line:
            self._has_line.notify_all()

    def _found(self, pattern: str) -> str:
        """Wait for a line, and return what its group holds."""
        compiled = re.compile(pattern)

        def search() -> str | None:
            return next((found[1] for line in self.lines if (found := compiled.search(line))), None)

        with self._has_line:
            self._has_line.wait_for(lambda: search() or self.process.poll() is not None, _START_S)
        text = search()
        assert text is not None, self.lines
        return text


def until(holds: Any, seconds: float = _START_S) -> None:
    """Wait until a condition holds; what takes this long is a fault, whatever the machine."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.01)
