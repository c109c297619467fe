"""Everybody who takes part in `benchmarks.peers`: prepared, loaded, and measured in turn."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmarks.machine import read_bandwidth
from benchmarks.peer.environments import ENVIRONMENTS, interpreter
from benchmarks.peer.process import PeerError, PeerProcess

ROOM = 16  # positions beyond the longest context and its steps
PREPARE_TIMEOUT_S, REQUEST_TIMEOUT_S, QUESTION_TIMEOUT_S = 3600, 600, 1800


@dataclass(slots=True)
class Contestant:
    """A peer's variant and what was measured of it; `decode_ms` and `prefill_s` hold a value per round, by context."""

    peer: str
    variant: str
    process: PeerProcess
    loaded: dict[str, Any]
    decode_ms: dict[int, list[float]] = field(default_factory=dict)
    prefill_s: dict[int, list[float]] = field(default_factory=dict)
    vision_s: list[float] = field(default_factory=list)
    questions: list[dict[str, dict[str, float]]] = field(default_factory=list)
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.peer} {self.variant.removeprefix('vision-')}"


@dataclass(slots=True)
class Field:
    """Everybody who takes part, and who does not, with the reason."""

    options: argparse.Namespace
    material: Path
    log: IO[str]
    left_out: list[dict[str, str]] = field(default_factory=list)

    def python(self, peer: str) -> Path:
        if self.options.here or peer == "ours":  # ours needs the exporter, and is this checkout
            return Path(sys.executable)
        return interpreter(ENVIRONMENTS[peer], self.options.environments)

    def prepare(self, names: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
        """Environments and converted weights of those asked for; returns who has both."""
        ready = []
        with contextlib.ExitStack() as stack:
            processes: dict[str, PeerProcess] = {}
            for peer, variant in names:
                if peer not in self.options.peers or variant not in (self.options.variants or (variant,)):
                    continue
                print(f"Preparing {peer} {variant} ...", file=sys.stderr, flush=True)
                with self.leaving_out(peer, variant):
                    if peer not in processes:
                        processes[peer] = stack.enter_context(self.process(peer))
                    processes[peer].request(
                        PREPARE_TIMEOUT_S, do="prepare", material=str(self.material), variant=variant
                    )
                    ready.append((peer, variant))
        return ready

    def process(self, peer: str) -> PeerProcess:
        return PeerProcess(self.python(peer), f"benchmarks.peer.{peer}", self.log)

    @contextlib.contextmanager
    def leaving_out(self, peer: str, variant: str, process: PeerProcess | None = None) -> Any:
        """A peer that fails inside is left out, in one line, and `process` ends with what it holds."""
        try:
            yield
        except PeerError as error:
            if process is not None:
                process.close()
            self.left_out.append({"peer": peer, "variant": variant, "reason": str(error)})
            print(f"Left out: {peer} {variant}: {error}", file=sys.stderr, flush=True)

    def run(
        self, names: list[tuple[str, str]], rounds: int, contexts: list[int]
    ) -> tuple[list[Contestant], list[float]]:
        """Load everybody, run all rounds; returns those who came through, and the bandwidth of each round."""
        limit = max([*contexts, *self._question_lengths(names)], default=0) + self.options.steps + ROOM
        limit = -(-limit // 256) * 256
        contestants: list[Contestant] = []
        bandwidth: list[float] = []
        with contextlib.ExitStack() as stack:
            for peer, variant in names:
                process = stack.enter_context(self.process(peer))
                with self.leaving_out(peer, variant, process):
                    loaded = process.request(
                        REQUEST_TIMEOUT_S,
                        do="load",
                        material=str(self.material),
                        variant=variant,
                        max_context=limit,
                        threads=self.options.threads,
                    )
                    loaded["max_context"] = limit
                    contestants.append(Contestant(peer, variant, process, loaded))
            for number in range(rounds + 1):
                print(f"Round {number} of {rounds} ...", file=sys.stderr, flush=True)
                bandwidth.append(read_bandwidth(self.options.threads))
                for context in contexts or [0]:
                    for one in list(contestants if number % 2 else reversed(contestants)):
                        with self.leaving_out(one.peer, one.variant, one.process):
                            self._measure(one, number, context)
                            continue
                        contestants.remove(one)
            for one in contestants:
                one.about = one.process.request(REQUEST_TIMEOUT_S, do="about")
        return contestants, bandwidth

    def question(self) -> dict[str, int]:
        """The sizes of the questions about a picture, as this project counted them; raises `PeerError`."""
        path = self.material / "question.json"
        if not path.exists():
            raise PeerError(f"{path.name} is missing: let `ours question` be prepared first, it counts the positions")
        sizes: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
        return sizes

    def _question_lengths(self, names: list[tuple[str, str]]) -> list[int]:
        if not any(variant.startswith("question") for _, variant in names):
            return []
        with contextlib.suppress(PeerError):
            sizes = self.question()
            return [sizes["positions"] + sizes["new_positions"] + sizes["new_tokens"]]
        return []

    def _measure(self, one: Contestant, number: int, context: int) -> None:
        if one.variant.startswith("question"):
            answer = one.process.request(QUESTION_TIMEOUT_S, do="question", seed=1 + number, question=self.question())
            if number:
                one.questions.append(answer)
        elif one.variant.startswith("vision-"):
            answer = one.process.request(REQUEST_TIMEOUT_S, do="vision", seed=1)
            if number:
                one.vision_s.append(answer["vision_s"])
        else:
            answer = one.process.request(
                REQUEST_TIMEOUT_S, do="text", context=context, steps=self.options.steps, seed=max(number, 1)
            )
            if number:
                one.decode_ms.setdefault(context, []).append(1e3 * float(np.median(answer["step_s"])))
                one.prefill_s.setdefault(context, []).append(answer["prefill_s"])
        if number <= 1:
            one.answers[context] = answer
        time.sleep(self.options.pause)  # let its threads stop spinning
