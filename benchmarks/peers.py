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

`--question` adds a whole question about a picture of 800 x 600 (seven tiles of the so400m shape, an answer of 300
tokens) and another one about the same picture, on both of this project's CPU providers. OpenVINO's row is the sum of
its parts, its int8 tower and GenAI's text of as many positions, and the second time nothing but the new question's own
positions, as a program that keeps everything could reach.

Everybody runs with the settings that are best for it: llama.cpp with flash attention and repacked weights, without the
latter where it dies of them; OpenVINO as it chooses, and again with int8 inputs scaled per 128 (`+dyn128`). The report
says what ran.

A peer that does not install, convert or run is left out with its reason. Prints tables, ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.document import add_out, finish
from benchmarks.machine import usable_cores
from benchmarks.peer.contest import Contestant, Field
from benchmarks.peer.environments import ENVIRONMENTS
from benchmarks.peer.material import make_material
from benchmarks.peer.report import make_report, print_report
from varco_runtime.bundle.verified import cache_folder

DEFAULT_FOLDER = Path.home() / ".cache" / "varco-edge" / "peers"
TEXT = (
    ("ours", "fp32"),
    ("ours", "int4"),
    ("ours", "int4-head4"),
    ("ours", "int4-a8"),
    ("ours", "int4-a8-head4"),
    ("ours", "int4-a8-head4-g128"),
    ("ours", "int4-a8-head4-g128+varco"),
    ("ours", "int4-a8-head4-g128@openvino"),
    ("ours", "int4-a8-head4-g128@openvino-fp32"),
    ("llama_cpp", "q4-head4"),
    ("llama_cpp", "q4-head8"),
    ("onnxruntime_genai", "int4"),
    ("openvino", "int4"),
    ("openvino", "int4+dyn128"),
    ("transformers", "fp32"),
    ("transformers", "bf16"),
)
VISION = (
    ("ours", "vision-fp32"),
    ("ours", "vision-int8"),
    ("ours", "vision-int8@openvino"),
    ("ours", "vision-fp32@openvino"),
    ("openvino", "vision-int8"),
    ("openvino", "vision-int8-weights"),
    ("openvino", "vision-bf16"),
    ("transformers", "vision-fp32"),
    ("transformers", "vision-bf16"),
)
QUESTION = (
    ("ours", "question"),
    ("ours", "question@openvino"),
    ("openvino", "question"),
    ("openvino", "question+dyn128"),
)
EXACT = tuple((peer, "fp32") for peer in ("transformers", "ours", "llama_cpp", "onnxruntime_genai", "openvino"))
WEIGHTS_GB = {"tiny": 0.1, "0.5b": 13}
"""The checkpoints and what all peers make of them, reckoned from the shape."""
QUESTION_GB = 3
"""What `--question` adds to them."""
CACHE_GB = 8
EXACT_TOLERANCE = 1e-2  # llama.cpp keeps its cache in fp16: 1.4e-3; another network is off by 1


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.check:
        options.shape, options.rounds, options.contexts, options.steps = "tiny", 1, [64], 8
        options.vision = options.question = False
    material = options.material or options.environments / "material" / options.shape
    say_what_goes_where(options, material)
    facts = make_material(material, options.shape, options.question)
    with open(material / "peers.log", "w", encoding="utf-8") as log:
        field = Field(options, material, log)
        text = field.prepare(EXACT if options.check else TEXT)
        vision = field.prepare(VISION) if options.vision else []
        question = field.prepare(QUESTION) if options.question else []
        if options.install:
            ready = [*text, *vision, *question]
            print(json.dumps({"benchmark": "peers", "ready": ready, "left_out": field.left_out}))
            return 0
        contestants, bandwidth = field.run(text, options.rounds, options.contexts)
        towers = field.run(vision, options.rounds, [])[0] if vision else []
        askers = field.run(question, options.rounds, [])[0] if question else []
    if options.check:
        return _check(contestants, field.left_out)
    report = make_report(options, facts, contestants, towers, askers, bandwidth[1:], field.left_out)
    if askers:
        report["question"]["sizes"] = field.question()
    print_report(report)
    finish(report, options.out)
    return 0


def say_what_goes_where(options: argparse.Namespace, material: Path) -> None:
    """Print how much the environments and weights that are not there yet take, about, and how to be rid of them."""
    needs = [] if material.exists() else [(material, WEIGHTS_GB[options.shape])]
    if options.question and options.shape != "tiny" and not (material / "question").exists():
        needs.append((material / "question", QUESTION_GB))
    for peer, environment in ENVIRONMENTS.items():
        home = options.environments / environment.name
        if peer in options.peers and not options.here and not home.exists():
            needs.append((home, environment.gigabytes))
    for place, gigabytes in needs:
        print(f"{place}: about {gigabytes:g} GB to be written", file=sys.stderr)
    if options.shape != "tiny":
        print(f"{cache_folder()}: up to {CACHE_GB} GB of packed weights, like any bundle's", file=sys.stderr)
    there = next(path for path in (options.environments, *options.environments.parents) if path.exists())
    total, free = sum(gigabytes for _, gigabytes in needs), shutil.disk_usage(there).free / 1e9
    line = f"In all about {total:.3g} GB, of {free:.0f} GB that are free. They stay for the next run. To remove them:"
    print(f"{line} rm -r {options.environments}", file=sys.stderr, flush=True)


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
    parser.add_argument("--question", action="store_true", help="also a whole question about a picture, and a second")
    parser.add_argument("--environments", type=Path, default=DEFAULT_FOLDER, metavar="DIR")
    parser.add_argument("--material", type=Path, metavar="DIR", help="weights; default: below --environments")
    parser.add_argument("--here", action="store_true", help="run the peers in this environment, make none")
    parser.add_argument("--install", action="store_true", help="environments and weights only")
    parser.add_argument("--check", action="store_true", help="compare the peers' numbers in fp32 on the tiny shape")
    add_out(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
