"""What rounding does to a real language model: KL to the unrounded one on documents, by way of rounding.

    python -m benchmarks.rounding CHECKPOINT NOISY --block 128 --head    # NOISY, the reference, is made once

The documents are those of the machine (licences, READMEs), 24 of 512 tokens to calibrate and four others to evaluate.
Layers are rounded one after the other by the functions of `varco quantize`; a row whose length no block divides ends
with a short one, which no checkpoint format holds. One pass gives several figures: with the head as it is and in int4
and int8, and with that and inputs of all linears rounded to int8 by the block, as a CPU's fast recipe does.

Each linear's weight first gets uniform noise within one step of blocks of 32: weights that were stored in 4 bits would
else meet some ways of rounding by accident. The model with that noise is the reference.
"""

from __future__ import annotations

import argparse
import glob
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from benchmarks.machine import describe_machine
from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.config.prompts import prompts_of
from varco_export.quantize.feedback import best_factor, round_to_nearest, round_with_feedback
from varco_export.quantize.grid import Fp8Grid, Grid, IntegerGrid, to_fp8
from varco_export.quantize.halves import FIRST, HALVES, LAST, Halves
from varco_export.quantize.head import Divergence, normed
from varco_export.quantize.layer import LINEARS, SHARED_INPUT, Decoder, watched_inputs
from varco_export.quantize.linear import Hessian, Measured
from varco_export.quantize.rotated import rotated, untied
from varco_export.quantize.texts import texts_of
from varco_export.quantize.weights import exact_rows
from varco_runtime.dtypes import Array
from varco_runtime.prompt.tokenizer import Tokenizer

EVALUATE = (
    "/usr/share/common-licenses/MPL-2.0",
    "/usr/share/common-licenses/LGPL-2.1",
    "/usr/share/perl/*/perl5db.pl",
    "/usr/lib/python3*/_pydecimal.py",
)
CALIBRATE = (
    "/usr/share/common-licenses/*",
    "/usr/share/doc/*/README*",
    "/usr/share/doc/*/NEWS*",
    "/usr/share/doc/*/copyright",
)
NUM_TOKENS = 512
HEAD_ROWS = 4096
SHARING = {
    shared: [name for name in LINEARS if SHARED_INPUT[name] == shared]
    for shared in dict.fromkeys(SHARED_INPUT.values())
}


def write_noisy(source: Path, out: Path) -> Path:
    """Copy a checkpoint and give the decoder's linears noise of one step of blocks of 32, unless that is done."""
    if out.exists():
        return out
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns("*.safetensors"))
    generator = np.random.RandomState(0)
    for path in sorted(source.glob("*.safetensors")):
        tensors = load_file(path)
        for name in sorted(tensors):
            if "language_model" in name and name.endswith("_proj.weight"):
                blocks = tensors[name].astype(np.float32).reshape(len(tensors[name]), -1, 32)
                step = (blocks.max(-1, keepdims=True) - blocks.min(-1, keepdims=True)) / 15
                noisy = blocks + (generator.rand(*blocks.shape).astype(np.float32) - 0.5) * step
                tensors[name] = noisy.reshape(tensors[name].shape).astype(tensors[name].dtype)
        save_file(tensors, partial / path.name)
    partial.replace(out)
    return out


def documents(patterns: Sequence[str], count: int, tokenizer: Tokenizer, avoid: set[Path]) -> list[Array]:
    """Return token ids of files, a fifth into each of them; the files are added to `avoid`."""
    found: list[Array] = []
    for path in (Path(name) for pattern in patterns for name in sorted(glob.glob(pattern))):
        if len(found) == count:
            break
        if not path.is_file() or path.suffix == ".gz" or path.resolve() in avoid or path.stat().st_size < 4000:
            continue
        avoid.add(path.resolve())
        text = path.read_text(errors="ignore")
        ids = tokenizer.encode_plain(text[len(text) // 5 :][:6000])[:NUM_TOKENS]
        if len(ids) == NUM_TOKENS:
            found.append(np.array(ids))
    return found


@contextmanager
def rounded_inputs(layer: torch.nn.Module, round_: Callable[[torch.Tensor], torch.Tensor] | None) -> Iterator[None]:
    """Round what flows into every linear."""
    linears = [layer.get_submodule(name) for name in LINEARS] if round_ else []
    handles = [one.register_forward_pre_hook(lambda _, inputs: (round_(inputs[0]),)) for one in linears]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def to_int8(block: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that rounds inputs to int8 by blocks of each row."""

    def round_(x: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % block))
        blocks = padded.reshape(*x.shape[:-1], -1, block)
        scale = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        return ((blocks / scale).round() * scale).reshape(padded.shape)[..., : x.shape[-1]]

    return round_


class Pass:
    """One pass through the model: calibration, the original, and the rounded one with its variants."""

    def __init__(self, checkpoint: Checkpoint, given: argparse.Namespace) -> None:
        self._checkpoint, self._given = checkpoint, given
        self.orders: list[bool] = []
        self.grid: Grid = (
            Fp8Grid(torch.float16) if given.fp8 else IntegerGrid(4, given.block, not given.zeros, torch.float16)
        )
        self._heads = {
            f", int{bits} head": IntegerGrid(bits, given.block, True, torch.float16) for bits in (4, 8) if given.head
        }
        self._round_inputs = to_fp8 if given.fp8 else None
        self.inputs = {"": to_fp8} if given.fp8 else {"": None, ", int8 inputs": to_int8(given.block)}

    def rounded(self, weight: torch.Tensor, measured: Measured | None, grid: Grid) -> torch.Tensor:
        """Return a weight as the options round it."""
        if self._given.exact_weights:
            return weight
        if measured is None:
            return round_to_nearest(weight, grid).weight
        factor = best_factor(weight, grid, measured.factors, measured.search, measured.hessian)
        self.orders.append(factor.keeps_groups)
        return round_with_feedback(weight, grid, factor, measured.search).weight

    def measure(self, hessian: Hessian, is_beside: bool = False) -> Measured:
        """Return what a Hessian tells."""
        lack, search = hessian.lack(), not self._given.minmax
        return Measured.of(hessian.mean(), self.grid.group_size, search, lack, is_beside)

    def run(self, calibration: list[Array], evaluation: list[Array]) -> dict[str, float]:
        """Return KL by variant."""
        text, cpu = self._checkpoint.config.text, torch.device("cpu")
        table = self._checkpoint.tensor("language_model.embed_tokens.weight").read().astype(np.float32)
        decoder = Decoder(text, cpu)
        seen = theirs = [table[ids] for ids in calibration]
        original = [table[ids] for ids in evaluation]
        streams = {name: list(original) for name in self.inputs}
        for index in range(text.num_hidden_layers):
            began = time.monotonic()
            layer = decoder.layer(self._checkpoint, index)
            original = list(decoder.run(layer, original))
            if index >= (self._given.layers or text.num_hidden_layers):
                streams = {name: list(decoder.run(layer, stream)) for name, stream in streams.items()}
                continue
            if self._given.nearest or self._given.exact_weights:
                self._round(layer, LINEARS, None)
            elif self._given.compensate:
                seen, theirs = self._compensate(Halves(decoder, layer, self._round_inputs), seen, theirs)
            else:
                seen = self._calibrate(decoder, layer, seen)
            for name, round_ in self.inputs.items():
                with rounded_inputs(layer, round_):
                    streams[name] = list(decoder.run(layer, streams[name]))
            print(f"layer {index}: {time.monotonic() - began:.0f} s", flush=True)
        return self._divergences(seen, theirs, original, streams)

    def _round(self, layer: torch.nn.Module, names: Sequence[str], measured: Measured | None) -> None:
        """Give linears of a layer their rounded weights."""
        for name in names:
            weight = layer.get_submodule(name).weight
            wanted = weight.clone() if measured is None else measured.wanted(weight.clone())
            weight.copy_(self.rounded(wanted, measured, self.grid))

    def _calibrate(self, decoder: Decoder, layer: torch.nn.Module, seen: list[Array]) -> list[Array]:
        """Round a layer by what flows through it as it was, and return what flows out of it then."""
        hessians: dict[str, Hessian] = {}

        def watch(name: str, linear: torch.nn.Linear, x: torch.Tensor) -> None:
            hessians.setdefault(name, Hessian(linear)).add(x)

        with watched_inputs(layer, watch):
            for _ in decoder.run(layer, seen):
                pass
        for shared, names in SHARING.items():
            self._round(layer, names, self.measure(hessians.pop(shared)))
        return list(decoder.run(layer, seen))

    def _compensate(self, ours: Halves, seen: list[Array], theirs: list[Array]) -> tuple[list[Array], list[Array]]:
        """Round a layer linear by linear, and return what flows out of it then, and what did before."""
        original = replace(ours, round_inputs=None)
        streams = [[torch.from_numpy(one) for one in theirs]]
        for half in HALVES:
            streams.append([original.run(half, one) for one in streams[-1]])
        front = [torch.from_numpy(one) for one in seen]
        for number, half in enumerate(HALVES):
            for shared, wanted in ((FIRST[half], streams[number]), (LAST[half], streams[number + 1])):
                hessian = Hessian(ours.layer.get_submodule(shared))
                for one, other in zip(front, wanted, strict=True):
                    hessian.add(*ours.lack(shared, one, other))
                self._round(ours.layer, SHARING[shared], self.measure(hessian, shared == LAST[half]))
            front = [ours.run(half, one) for one in front]
        return [one.numpy() for one in front], [one.numpy() for one in streams[-1]]

    def _divergences(
        self, seen: list[Array], seen_before: list[Array], original: list[Array], streams: dict[str, list[Array]]
    ) -> dict[str, float]:
        def states(samples: list[Array]) -> torch.Tensor:
            return normed(self._checkpoint, torch.from_numpy(np.concatenate(samples)))

        theirs, ours = states(original), {name: states(samples) for name, samples in streams.items()}
        found = {name + head: Divergence.of_tokens(len(theirs)) for name in ours for head in ("", *self._heads)}
        measured = None
        if self._heads and not self._given.nearest:
            hessian = Hessian(torch.nn.Linear(theirs.shape[1], 1))
            for sample, before in zip(seen, seen_before, strict=True):
                inputs = states([sample])
                hessian.add(inputs, states([before]) - inputs if self._given.compensate else None)
            measured = self.measure(hessian)
        head = self._checkpoint.tensor("lm_head.weight")
        for start in range(0, head.shape[0], HEAD_ROWS):
            rows = torch.from_numpy(exact_rows(head, start, min(start + HEAD_ROWS, head.shape[0])))
            logits = theirs @ rows.T
            wanted = rows if measured is None else measured.wanted(rows)
            rounded = {name: self.rounded(wanted, measured, grid) for name, grid in self._heads.items()}
            for name, hidden in ours.items():
                round_ = self.inputs[name]
                found[name].add(logits, hidden @ rows.T)
                for head_name, weight in rounded.items():
                    found[name + head_name].add(logits, (round_(hidden) if round_ else hidden) @ weight.T)
        return {name: divergence.mean() for name, divergence in found.items()}


def make_parser() -> argparse.ArgumentParser:
    """Return what the command line is read with; `samples.py` asks for the same runs."""
    parser = argparse.ArgumentParser(description="KL of ways of rounding a real language model.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("noisy", type=Path)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--rotate", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--heads", action=argparse.BooleanOptionalAction, default=True, help="turn heads' values too")
    parser.add_argument("--minmax", action="store_true", help="scales that reach to the largest weight")
    parser.add_argument("--nearest", action="store_true", help="round to the nearest")
    parser.add_argument("--exact-weights", action="store_true", help="round nothing but inputs")
    parser.add_argument("--zeros", action="store_true", help="zero points")
    parser.add_argument("--fp8", action="store_true", help="FP8 weights and inputs")
    parser.add_argument("--head", action="store_true", help="int4 and int8 heads too")
    parser.add_argument(
        "--compensate", action=argparse.BooleanOptionalAction, help="make up for errors; the default but with --fp8"
    )
    parser.add_argument("--layers", type=int, metavar="N", help="round the first N only")
    parser.add_argument("--drawn", type=int, default=0, metavar="N", help="calibrate with N of the project's texts")
    return parser


def measure(given: argparse.Namespace) -> tuple[dict[str, float], int]:
    """Return KL by variant, and the tokens that were calibrated with, after one line about the run."""
    torch.set_grad_enabled(False)
    if given.compensate is None:
        given.compensate = not given.fp8
    checkpoint = Checkpoint.open(write_noisy(given.checkpoint, given.noisy))
    tokenizer = Tokenizer.from_json(prompts_of(checkpoint.folder, checkpoint.config).tokenizer_json)
    avoid: set[Path] = set()
    evaluation = documents(EVALUATE, 4, tokenizer, avoid)
    calibration = documents(CALIBRATE, given.documents, tokenizer, avoid)
    if given.drawn:
        rng = random.Random(0)
        calibration = [np.array(tokenizer.encode_plain(texts_of(rng, 12))[:NUM_TOKENS]) for _ in range(given.drawn)]
    turned = rotated(checkpoint, 0, given.heads) if given.rotate else untied(checkpoint)
    one = Pass(turned, given)
    found = one.run(calibration, evaluation)
    options = {name: value for name, value in vars(given).items() if name not in ("checkpoint", "noisy")}
    print(describe_machine())
    print(f"{len(calibration)} texts to calibrate, {len(evaluation)} to evaluate; {options}")
    print(f"groups in runs: {sum(one.orders)} of {len(one.orders)}")
    return found, sum(map(len, calibration))


def main(arguments: Sequence[str] | None = None) -> None:
    for name, kl in measure(make_parser().parse_args(arguments))[0].items():
        print(f"RESULT KL {kl:.4f}{name}")


if __name__ == "__main__":
    main()
