"""How cost grows: decode with the context, prefill with the prompt, decode with the model, vision with the tiles.

    python -m benchmarks.scaling --out benchmarks/scaling.json
    python -m benchmarks.scaling --shape tiny --contexts 64 128 256 --tiles 1 2 --rounds 2     # seconds

Bundles of random weights, int4 with int8 activations and an int4 head, vision in int8; measured through the backend.
Each growth is fitted by least squares and shown beside what memory alone would take: keys and values, or weights, over
the read bandwidth measured in the same run. Every round visits all points once, so that a slow moment of the machine
does not fall on one of them; the fits are over the medians. Prints tables, ends with one JSON line.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.document import add_out, finish
from benchmarks.machine import (
    describe_machine,
    line_fit,
    power_fit,
    read_bandwidth,
    spread,
    usable_cores,
)
from benchmarks.peer.material import SMALL_VISION, make_material
from benchmarks.peer.ours import BUNDLES, make_bundle
from benchmarks.peer.protocol import prompt_ids, tile_pixels
from benchmarks.peers import DEFAULT_FOLDER
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime import Varco
from varco_runtime.backend import PromptInputs
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.packing import packing_plan
from varco_runtime.picture.tiles import normalize, tile

FAST = BUNDLES["int4-a8-head4"][1]
# (layers, hidden size, intermediate size): about 60, 170 and 320 MB per token, more than the caches hold
SIZES = ((12, 768, 3072), (20, 896, 4096), (24, 1024, 6144))
TINY_SIZES = ((2, 128, 256), (4, 256, 512))
SIZE_VOCABULARY = 8192
SIZE_CONTEXT = 64
HEAD_DIM = 64

Point = tuple[float, Callable[[], float]]


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    material = options.material or DEFAULT_FOLDER / "material" / options.shape
    facts = make_material(material, options.shape)
    text = Varco.load(
        make_bundle(material, "int4-a8-head4", *BUNDLES["int4-a8-head4"]),
        max_context=max(options.contexts) + options.steps,
        threads=options.threads,
    )
    report: dict[str, Any] = {
        "benchmark": "scaling",
        "machine": describe_machine(),
        "versions": {name: metadata.version(name) for name in ("onnxruntime", "numpy")},
        "shape": options.shape,
        "threads": options.threads,
        "rounds": options.rounds,
        "read_bytes_per_s": round(read_bandwidth(options.threads)),
        "studies": [],
    }
    rate = report["read_bytes_per_s"]
    report["studies"].append(_decode_by_context(text, facts.vocab_size, rate, options))
    report["studies"].append(_prefill_by_length(text, facts.vocab_size, options))
    del text
    report["studies"].append(_decode_by_size(material, rate, options))
    if options.tiles:
        vision = Varco.load(make_bundle(material, "vision-int8", *BUNDLES["vision-int8"]), threads=options.threads)
        report["studies"] += _tiles(vision, facts.tile_px, options)
    for study in report["studies"]:
        _print_study(study)
    finish(report, options.out)
    return 0


def study(name: str, x: str, y: str, points: Iterable[Point], rounds: int, **facts: Any) -> dict[str, Any]:
    """Measure all `points` in each of `rounds` rounds, after one that warms up, and fit the medians.

    A point is its x and a function that returns its y. `x` and `y` name the axes with their units.
    """
    points = list(points)
    found: list[list[float]] = [[] for _ in points]
    for number in range(rounds + 1):
        for values, (_, measure) in zip(found, points, strict=True):
            value = measure()
            if number:
                values.append(value)
    xs, ys = [at for at, _ in points], [spread(values, 6) for values in found]
    medians = [one["median"] for one in ys]
    fits = {"line": line_fit(xs, medians), "power": power_fit(xs, medians)} if len(xs) > 1 else {}
    return {"name": name, "x_label": x, "y_label": y, "x": xs, "y": ys, "fit": fits, **facts}


def _decode_by_context(varco: Varco, vocab_size: int, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    longest = max(options.contexts)
    varco.backend.prefill(PromptInputs(prompt_ids(1, longest, vocab_size), -1, None), 0)  # rewinding is free
    kv_bytes = varco.bundle.manifest.kv_bytes_per_token
    found = study(
        "decode by context",
        "context, tokens",
        "decode, ms/token",
        ((context, lambda at=context: _decode_ms(varco, at, options.steps)) for context in options.contexts),
        options.rounds,
        kv_bytes_per_token=kv_bytes,
        limit_slope=1e3 * kv_bytes / rate,
    )
    if found["fit"]:
        found["ms_per_1k"] = round(1e3 * found["fit"]["line"]["slope"], 4)
        found["limit_ms_per_1k"] = round(1e3 * found["limit_slope"], 4)
        found["times_limit"] = round(found["ms_per_1k"] / found["limit_ms_per_1k"], 2)
    return found


def _decode_ms(varco: Varco, context: int, steps: int) -> float:
    """The median step at positions from `context` on, each with its own arg-max."""
    seconds = []
    token = 1
    for position in range(context, context + steps):
        started = time.perf_counter()
        token = int(varco.backend.decode_step(token, position).argmax())
        seconds.append(time.perf_counter() - started)
    return 1e3 * float(np.median(seconds))


def _prefill_by_length(varco: Varco, vocab_size: int, options: argparse.Namespace) -> dict[str, Any]:
    def seconds(length: int) -> float:
        inputs = PromptInputs(prompt_ids(1, length, vocab_size), -1, None)
        started = time.perf_counter()
        varco.backend.prefill(inputs, 0)
        return time.perf_counter() - started

    lengths = [length for length in options.contexts if length <= options.longest_prefill]
    points = ((length, lambda at=length: seconds(at)) for length in lengths)
    return study("prefill by length", "prompt, tokens", "prefill, s", points, options.rounds)


def _decode_by_size(material: Path, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """Decoders of several sizes at one short context, over the bytes that each of their steps reads."""
    models = []
    for layers, hidden, intermediate in TINY_SIZES if options.shape == "tiny" else SIZES:
        name = f"size-{layers}x{hidden}"
        if not (material / name).exists():
            make_tiny(material / name, _sized(layers, hidden, intermediate))
        bundle = make_bundle(material, name, name, FAST)
        models.append(Varco.load(bundle, max_context=SIZE_CONTEXT + options.steps, threads=options.threads))
    points = (
        (
            model.bundle.manifest.decoder.weight_bytes / 1e6,
            lambda one=model: _decode_ms(one, SIZE_CONTEXT, options.steps),
        )
        for model in models
    )
    found = study("decode by size", "weights read per token, MB", "decode, ms/token", points, options.rounds)
    slope = found["fit"]["line"]["slope"]  # ms per MB
    found["effective_bytes_per_s"] = round(1e9 / slope) if slope > 0 else None
    found["limit_slope"] = 1e9 / rate
    return found


def _sized(layers: int, hidden: int, intermediate: int) -> TinyOptions:
    return TinyOptions(
        dtype="bf16",
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=hidden // HEAD_DIM,
        num_key_value_heads=2,
        vocab_size=SIZE_VOCABULARY,
        tie_word_embeddings=True,
        **SMALL_VISION,  # type: ignore[arg-type]
    )


def _tiles(varco: Varco, side: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Vision over tiles, and what comes before it over the same pictures."""
    settings = varco.bundle.manifest.image

    def vision_s(count: int) -> float:
        pixel_values = np.repeat(tile_pixels(1, side), count, axis=0)
        started = time.perf_counter()
        varco.backend.encode(pixel_values)
        return time.perf_counter() - started

    def preprocess_s(picture: Any) -> float:
        started = time.perf_counter()
        normalize(tile(picture, settings), settings)
        packing_plan(picture.size_hw, settings)
        return time.perf_counter() - started

    vision = ((count, lambda at=count: vision_s(at)) for count in options.tiles)
    # One row of tiles, and the whole picture as one more.
    pictures = [
        load_picture(Image.effect_noise((side * count, side), 64).convert("RGB"))
        for count in options.tiles
        if count < 7
    ]
    counts = [len(tile(picture, settings)) for picture in pictures]
    before = ((count, lambda one=picture: preprocess_s(one)) for count, picture in zip(counts, pictures, strict=True))
    return [
        study("vision by tiles", "tiles", "vision, s", vision, options.rounds),
        study("preprocessing by tiles", "tiles", "preprocessing, s", before, options.rounds),
    ]


def _print_study(found: dict[str, Any]) -> None:
    print(f"### {found['name']}\n\n| {found['x_label']} | {found['y_label']} | least | largest |\n|---|---|---|---|")
    for at, values in zip(found["x"], found["y"], strict=True):
        print(f"| {at:,.4g} | " + " | ".join(f"{values[which]:.4g}" for which in ("median", "min", "max")) + " |")
    if found["fit"]:
        line, power = found["fit"]["line"], found["fit"]["power"]
        print(f"\nline: {line['intercept']:.4g} + {line['slope']:.4g} x (r2 {line['r2']:.3f}); ", end="")
        print(f"power: exponent {power['exponent']:.2f} (r2 {power['r2']:.3f})")
    if "ms_per_1k" in found:
        print(f"{found['ms_per_1k']} ms per 1,000 tokens; keys and values over bandwidth {found['limit_ms_per_1k']}")
    if found.get("effective_bytes_per_s"):
        print(f"weights arrive at {found['effective_bytes_per_s'] / 1e9:.1f} GB/s, by the slope")
    print()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description="Measure how cost grows.")
    parser.add_argument("--shape", default="0.5b", choices=("tiny", "0.5b"))
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 1024, 2048, 4096, 8192], metavar="N")
    parser.add_argument("--longest-prefill", type=int, default=4096, metavar="N", help="of --contexts, for prefill")
    parser.add_argument("--tiles", type=int, nargs="*", default=[1, 2, 4, 6], metavar="N", help="none: no vision")
    parser.add_argument("--steps", type=int, default=16, help="decode steps per point and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--material", type=Path, metavar="DIR", help="weights; default: those of benchmarks.peers")
    add_out(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
