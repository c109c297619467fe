"""The same work by this project and by what a user would pick instead, side by side on the CPU.

    python -m benchmarks.peers --install                 # make the peers' environments and weights, measure nothing
    python -m benchmarks.peers --out benchmarks/peers.json
    python -m benchmarks.peers --check                   # do all peers run the same network? fp32, tiny, seconds

Text: decode ms/token and prefill at each of `--contexts`, peak resident memory, for a decoder of `--shape` with random
weights; batch 1, greedy, the same random prompt for everybody. Vision: tower and projector on one tile of the so400m
shape. Each peer lives in its own environment under `--environments`, each variant in its own process, all loaded at
once; every round runs all of them in turn, the next one in the opposite order, so that a slow moment of the machine
hits everybody. The first round warms up and is not counted. Read bandwidth is measured in every round, and the limit is
what int4 weights (4 bits, no scales) and an fp16 cache take at its median.

A peer that does not install, convert or run is left out with its reason. Prints tables, ends with one JSON line.
"""

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

from benchmarks.machine import describe_machine, read_bandwidth, spread, usable_cores, write_json
from benchmarks.peer.environments import ENVIRONMENTS, interpreter
from benchmarks.peer.material import Facts, make_material
from benchmarks.peer.ours import THROUGH_VARCO
from benchmarks.peer.process import PeerError, PeerProcess

DEFAULT_FOLDER = Path.home() / ".cache" / "varco-edge" / "peers"
TEXT = (
    ("ours", "fp32"),
    ("ours", "int4"),
    ("ours", "int4-head4"),
    ("ours", "int4-a8"),
    ("ours", "int4-a8-head4"),
    ("ours", "int4-a8-head4-g128"),
    ("ours", "int4-a8-head4-g128+varco"),
    ("llama_cpp", "q4-head4"),
    ("llama_cpp", "q4-head8"),
    ("onnxruntime_genai", "int4"),
    ("openvino", "int4"),
    ("transformers", "fp32"),
    ("transformers", "bf16"),
)
VISION = (
    ("ours", "vision-fp32"),
    ("ours", "vision-int8"),
    ("openvino", "vision-int8"),
    ("openvino", "vision-int8-weights"),
    ("openvino", "vision-bf16"),
    ("transformers", "vision-fp32"),
    ("transformers", "vision-bf16"),
)
EXACT = tuple((peer, "fp32") for peer in ("transformers", "ours", "llama_cpp", "onnxruntime_genai", "openvino"))
EXACT_TOLERANCE = 1e-2  # llama.cpp keeps its cache in fp16: 1.4e-3; another network is off by 1
PREPARE_TIMEOUT_S, REQUEST_TIMEOUT_S = 3600, 600
ROOM = 16  # positions beyond the longest context and its steps


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
        limit = max(contexts, default=0) + self.options.steps + ROOM
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
                        max_context=-(-limit // 256) * 256,
                        threads=self.options.threads,
                    )
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

    def _measure(self, one: Contestant, number: int, context: int) -> None:
        if one.variant.startswith("vision-"):
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


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.check:
        options.shape, options.rounds, options.contexts, options.steps = "tiny", 1, [64], 8
        options.vision = False
    material = options.material or options.environments / "material" / options.shape
    facts = make_material(material, options.shape)
    with open(material / "peers.log", "w", encoding="utf-8") as log:
        field_ = Field(options, material, log)
        text = field_.prepare(EXACT if options.check else TEXT)
        vision = field_.prepare(VISION) if options.vision else []
        if options.install:
            print(json.dumps({"benchmark": "peers", "ready": [*text, *vision], "left_out": field_.left_out}))
            return 0
        contestants, bandwidth = field_.run(text, options.rounds, options.contexts)
        towers = field_.run(vision, options.rounds, [])[0] if vision else []
    if options.check:
        return _check(contestants, field_.left_out)
    report = make_report(options, facts, contestants, towers, bandwidth[1:], field_.left_out)
    print_report(report)
    if options.out:
        write_json(options.out, report)
    print(json.dumps(report))
    return 0


def make_report(
    options: argparse.Namespace,
    facts: Facts,
    contestants: list[Contestant],
    towers: list[Contestant],
    bandwidth: list[float],
    left_out: list[dict[str, str]],
) -> dict[str, Any]:
    """Everything that was found, ready to print and to plot."""
    rate = spread(bandwidth, 0)
    reference = next((one for one in contestants if one.variant == "fp32"), None)
    tower = next((one for one in towers if one.variant == "vision-fp32"), None)
    return {
        "benchmark": "peers",
        "machine": describe_machine(),
        "shape": facts.shape,
        "threads": options.threads,
        "rounds": options.rounds,
        "steps": options.steps,
        "contexts": options.contexts,
        "read_bytes_per_s": rate,
        "limit_decode_ms": {
            str(context): round(1e3 * facts.int4_bytes(context + options.steps // 2) / rate["median"], 6)
            for context in options.contexts
        },
        "text": [
            {
                "peer": one.peer,
                "variant": one.variant,
                "decode_ms": {str(context): spread(values) for context, values in one.decode_ms.items()},
                "prefill_s": {str(context): spread(values) for context, values in one.prefill_s.items()},
                "agreement": None
                if reference is None or one.variant.endswith(THROUGH_VARCO)  # a prompt of its own
                else agreement(one, reference, options.contexts[0]),
                **_facts_of(one),
            }
            for one in contestants
        ],
        "vision": [
            {
                "peer": one.peer,
                "variant": one.variant.removeprefix("vision-"),
                "vision_s": spread(one.vision_s),
                "cosine": None if tower is None else _cosine(one.answers[0]["features"], tower.answers[0]["features"]),
                **_facts_of(one),
            }
            for one in towers
        ],
        "left_out": left_out,
    }


def _facts_of(one: Contestant) -> dict[str, Any]:
    return {
        "peak_rss_bytes": one.about["peak_rss_bytes"],
        "model_bytes": one.loaded["model_bytes"],
        "load_s": round(one.loaded["load_s"], 3),
        "versions": one.about["versions"],
    }


def agreement(one: Contestant, reference: Contestant, context: int) -> dict[str, Any]:
    """How far a peer's answer is the fp32 one's, to the same prompt. With random weights rounding to int4 changes every
    token after a few layers, so this tells little of a peer: that they run one network is what `--check` shows.

    `logits_cosine`: of the last prompt token's logits, None where a library does not show them. `same_tokens`: greedy
    tokens before the first that differs.
    """
    answer, other = one.answers[context], reference.answers[context]
    same = [a == b for a, b in zip(answer["tokens"], other["tokens"], strict=True)]
    cosine = _cosine(answer["logits"], other["logits"]) if answer["logits"] is not None else None
    return {"logits_cosine": cosine, "same_tokens": same.index(False) if False in same else len(same)}


def _cosine(a: list[float], b: list[float]) -> float:
    x, y = np.array(a), np.array(b)
    return round(float(x @ y / np.sqrt((x @ x) * (y @ y))), 6)


def _check(contestants: list[Contestant], left_out: list[dict[str, str]]) -> int:
    """Print how far every peer's fp32 answer is from the first one's; status 1 if one runs another network."""
    reference = contestants[0]
    expected = reference.answers[64]
    errors: dict[str, Any] = {}
    for one in contestants:
        answer = one.answers[64]
        if answer["logits"] is not None:
            distance = np.array(answer["logits"]) - np.array(expected["logits"])
            error = float(np.linalg.norm(distance) / np.linalg.norm(expected["logits"]))
        else:
            error = 0.0 if answer["tokens"] == expected["tokens"] else 1.0
        errors[one.name] = round(error, 6)
        shown = "logits" if answer["logits"] is not None else "tokens"
        print(f"{one.name:<28}{error:10.2e}   by its {shown}")
    print(json.dumps({"benchmark": "peers-check", "reference": reference.name, "errors": errors, "left_out": left_out}))
    return 0 if all(error <= EXACT_TOLERANCE for error in errors.values()) else 1


def print_report(report: dict[str, Any]) -> None:
    """Tables for people, in Markdown."""
    contexts = [str(context) for context in report["contexts"]]
    rate = report["read_bytes_per_s"]
    print(f"{report['shape']} shape, {report['threads']} threads, {report['rounds']} rounds, {report['steps']} steps;")
    print(f"memory read at {rate['median'] / 1e9:.1f} GB/s ({rate['min'] / 1e9:.1f} to {rate['max'] / 1e9:.1f}).\n")
    heads = [f"decode ms/token at {c}" for c in contexts] + [f"prefill {c}, s" for c in contexts]
    print("| | " + " | ".join([*heads, "peak RSS, MiB"]) + " |")
    print("|---|" + "---|" * (2 * len(contexts) + 1))
    limits = [f"{report['limit_decode_ms'][context]:.2f}" for context in contexts]
    print("| limit | " + " | ".join(limits + [""] * (len(contexts) + 1)) + " |")
    for row in report["text"]:
        cells = [_cell(row["decode_ms"][context], 2) for context in contexts]
        cells += [_cell(row["prefill_s"][context], 2) for context in contexts]
        cells.append(f"{row['peak_rss_bytes'] / 2**20:.0f}")
        print(f"| {row['peer']} {row['variant']} | " + " | ".join(cells) + " |")
    if report["vision"]:
        print("\n| vision, one tile | s | peak RSS, MiB | cosine |\n|---|---|---|---|")
    for row in report["vision"]:
        cosine = "" if row["cosine"] is None else f"{row['cosine']:.5f}"
        cells = [_cell(row["vision_s"], 3), f"{row['peak_rss_bytes'] / 2**20:.0f}", cosine]
        print(f"| {row['peer']} {row['variant']} | " + " | ".join(cells) + " |")
    for one in report["left_out"]:
        print(f"\nLeft out: {one['peer']} {one['variant']}: {one['reason']}")
    print()


def _cell(values: dict[str, float], digits: int) -> str:
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f}-{values['max']:.{digits}f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Measure the peers side by side.")
    everybody = ["ours", *ENVIRONMENTS]
    parser.add_argument("--peers", nargs="+", choices=everybody, default=everybody)
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="of those peers: int4 vision-int8 ...")
    parser.add_argument("--shape", default="0.5b", choices=("tiny", "0.5b"))
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048], metavar="N")
    parser.add_argument("--steps", type=int, default=32, help="decode steps per context and round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: all usable cores")
    parser.add_argument("--pause", type=float, default=0.3, metavar="S", help="between two measurements")
    parser.add_argument("--no-vision", dest="vision", action="store_false")
    parser.add_argument("--environments", type=Path, default=DEFAULT_FOLDER, metavar="DIR")
    parser.add_argument("--material", type=Path, metavar="DIR", help="weights; default: below --environments")
    parser.add_argument("--here", action="store_true", help="run the peers in this environment, make none")
    parser.add_argument("--install", action="store_true", help="environments and weights only")
    parser.add_argument("--check", action="store_true", help="compare the peers' numbers in fp32 on the tiny shape")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the JSON, whole or not at all")
    return parser


if __name__ == "__main__":
    sys.exit(main())
