"""How a peer's process talks to the benchmark: one JSON object per line, a request on stdin, an answer on stdout.

    {"do": "prepare", "material": FOLDER, "variant": "int4"}   convert the weights; in a process of its own
    {"do": "load", "material": FOLDER, "variant": "int4", "max_context": 4096, "threads": 2}
    {"do": "text", "context": 512, "steps": 32, "seed": 1}     prefill, then decode from there
    {"do": "vision", "seed": 1}                                one tile
    {"do": "question", "seed": 1, "question": {...}}           a whole question about a picture, and another one
    {"do": "about"}                                            versions, peak memory, settings
    {"do": "quit"}

An answer is {"ok": {...}} or {"error": "one line"}. Whatever a library prints goes to stderr. This file runs in every
peer's own environment, so it needs nothing but the standard library and numpy.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
NUM_CHECKED_LOGITS = 512


@dataclass(frozen=True, slots=True)
class Question:
    """The sizes of a question about a picture and of another question about the same one."""

    tiles: int
    positions: int
    """Tokens of the first prompt, the picture's included."""
    new_positions: int
    """Tokens of the second prompt that are not the first one's."""
    new_tokens: int
    """Of each answer."""


class Peer(ABC):
    """One library running one model. Which of text and vision it runs depends on the variant."""

    packages: tuple[str, ...] = ()
    """Distributions whose versions the report names."""

    def prepare(self, material: Path, variant: str) -> None:  # noqa: B027 - who reads the checkpoint has nothing to do
        """Convert what `variant` needs of the weights under `material`, once, whole or not at all."""

    @abstractmethod
    def load(self, material: Path, variant: str, max_context: int, threads: int) -> None:
        """Load what `variant` names, with `threads` processor threads and room for `max_context` positions."""

    def prefill(self, ids: Array) -> Array | None:
        """Forget what was there, read `ids` `[n]` int64; the last logits `[vocab]`, None where they stay inside."""
        raise NotImplementedError

    def step(self) -> int:
        """Take the most likely token, put it behind the others, and return it: one decode step."""
        raise NotImplementedError

    def text(self, ids: Array, steps: int) -> dict[str, Any]:
        """Time one prefill and `steps` decode steps behind it: `prefill_s`, `step_s` `[steps]`, `tokens` `[steps]`.

        `logits`, if the library shows them, are some of those after the last prompt token (`checked_logits`).
        """
        started = time.perf_counter()
        logits = self.prefill(ids)
        prefill_s = time.perf_counter() - started
        checked = None if logits is None else checked_logits(logits)
        tokens, step_s = [], []
        for _ in range(steps):
            started = time.perf_counter()
            tokens.append(self.step())
            step_s.append(time.perf_counter() - started)
        return {"prefill_s": prefill_s, "step_s": step_s, "tokens": tokens, "logits": checked}

    def vision(self, pixel_values: Array) -> Array:
        """One tile `[1, 3, S, S]` fp32 through tower and projector: features `[P, D]`."""
        raise NotImplementedError

    def question(self, seed: int, question: Question, vocab_size: int, side: int) -> dict[str, dict[str, float]]:
        """Ask the question, `first`, and another one about the same picture, `second`: the seconds of each by part.

        The parts: `vision_s`, `prefill_s`, `first_token_s`, `decode_s` of the tokens behind the first, `total_s`.
        """
        raise NotImplementedError

    @property
    def model_bytes(self) -> int:
        """Bytes of the files that `load` read weights from."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What decides on its speed, as it ran. Asked for after everything was measured."""
        return {}


def checked_logits(logits: Array) -> list[float]:
    """Logits of a few tokens spread over the vocabulary, to tell that all peers run the same network."""
    chosen = np.linspace(0, len(logits) - 1, NUM_CHECKED_LOGITS).astype(np.int64)
    return [round(float(value), 4) for value in logits[chosen]]


def prompt_ids(seed: int, length: int, vocab_size: int) -> Array:
    """The same random prompt `[length]` int64 for every peer."""
    return np.random.default_rng([seed, length]).integers(0, vocab_size, length, dtype=np.int64)


def tile_pixels(seed: int, side: int) -> Array:
    """The same random tile `[1, 3, side, side]` fp32 in -1..1 for every peer."""
    return np.random.default_rng([seed, side]).uniform(-1, 1, (1, 3, side, side)).astype(np.float32)


def folder_bytes(folder: Path, *patterns: str) -> int:
    """Bytes of the files of `folder` that match."""
    return sum(path.stat().st_size for pattern in patterns for path in folder.glob(pattern))


def peak_rss_bytes() -> int:
    """This process's largest resident memory so far.

    VmHWM and not ru_maxrss, which starts at what the parent held when it forked.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def serve(peer: Peer) -> int:
    """Answer requests until `quit` or the end of stdin."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    vocab_size = side = 0
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        if what == "quit":
            break
        try:
            if what == "load":
                facts = json.loads((Path(request["material"]) / "facts.json").read_text())
                vocab_size, side = facts["vocab_size"], facts["tile_px"]
            answer = {"ok": _answer(peer, what, request, vocab_size, side)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


def _answer(peer: Peer, what: str, request: dict[str, Any], vocab_size: int, side: int) -> dict[str, Any]:
    if what == "prepare":
        peer.prepare(Path(request["material"]), request["variant"])
        return {}
    if what == "load":
        started = time.perf_counter()
        peer.load(Path(request["material"]), request["variant"], request["max_context"], request["threads"])
        return {"load_s": time.perf_counter() - started, "model_bytes": peer.model_bytes}
    if what == "text":
        return peer.text(prompt_ids(request["seed"], request["context"], vocab_size), request["steps"])
    if what == "vision":
        pixel_values = tile_pixels(request["seed"], side)
        started = time.perf_counter()
        features = peer.vision(pixel_values)
        seconds = time.perf_counter() - started
        return {"vision_s": seconds, "features": checked_logits(np.asarray(features, dtype=np.float32).ravel())}
    if what == "question":
        return dict(peer.question(request["seed"], Question(**request["question"]), vocab_size, side))
    if what == "about":
        peak = peak_rss_bytes()  # before `settings`, which may load something
        return {"versions": _versions(peer.packages), "peak_rss_bytes": peak, "settings": peer.settings()}
    raise ValueError(f"unknown request {what!r}")


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    return {name: metadata.version(name) for name in packages}
