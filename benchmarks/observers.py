"""llm-compressor's ways of choosing scales beside this project's, linear by linear: the error of the outputs.

    python -m benchmarks.observers CHECKPOINT NOISY --layers 4 --group-size 64    # NOISY as for benchmarks.rounding

Each linear is rounded to int4 by GPTQ from the same Hessian: by llm-compressor's own function with the scales of one of
its observers and its `static` activation order, and by `varco quantize`'s functions. The error is that of the outputs
over their own square, on documents that were not calibrated with; by kind of linear it is the sum over layers, over
that of llm-compressor's default. Layers run as they were, so that all ways see the same. Needs llm-compressor.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.document import add_out, finish
from benchmarks.machine import describe_machine
from benchmarks.rounding import CALIBRATE, EVALUATE, SHARING, documents, write_noisy
from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.config.prompts import prompts_of
from varco_export.quantize.feedback import best_factor, round_with_feedback
from varco_export.quantize.grid import IntegerGrid
from varco_export.quantize.layer import Decoder, watched_inputs
from varco_export.quantize.linear import Hessian, Measured, output_error
from varco_export.quantize.rotated import rotated, untied
from varco_export.quantize.scheme import silence
from varco_runtime.dtypes import Array
from varco_runtime.prompt.tokenizer import Tokenizer

DEFAULT = "memoryless_minmax"
OBSERVERS: dict[str, tuple[str, dict[str, float]]] = {
    DEFAULT: (DEFAULT, {}),
    "memoryless_mse": ("memoryless_mse", {}),
    "imatrix_mse": ("imatrix_mse", {}),
    "imatrix_mse, squared errors": ("imatrix_mse", {"norm": 2.0}),
}
MINMAX, SEARCH = "ours, minmax", "ours, search"


def round_as_llm_compressor(
    weight: torch.Tensor, hessian: torch.Tensor, group_size: int, observer: str, options: dict[str, float]
) -> torch.Tensor:
    """Return a weight `[N, K]` rounded to int4 by llm-compressor's functions, from a Hessian `[K, K]`."""
    silence()
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
    from llmcompressor.observers import Observer

    arguments = QuantizationArgs(num_bits=4, strategy="group", group_size=group_size, actorder="static")
    found = Observer.load_from_registry(observer, base_name="weight", args=arguments, **options)
    found._imatrix_sum, found._imatrix_count = hessian.diagonal().clone(), torch.tensor(1)
    scales: dict[str, Any] = found(weight).get_qparams()
    zeros = scales["zero_point"][None]
    rounded, _, fell_back = quantize_weight(
        weight.clone()[None], hessian.clone()[None], scales["scale"][None], zeros, None, arguments
    )
    assert not fell_back.any(), "Bug: a Hessian without an inverse"
    return rounded[0]


def round_as_ours(weight: torch.Tensor, grid: IntegerGrid, measured: Measured) -> torch.Tensor:
    """Return a weight `[N, K]` rounded by the functions of `varco quantize`."""
    factor = best_factor(weight, grid, measured.factors, measured.search, measured.hessian)
    return round_with_feedback(weight, grid, factor, measured.search).weight


def run_on(decoder: Decoder, layer: torch.nn.Module, hidden: list[Array]) -> dict[str, torch.Tensor]:
    """Run samples through a layer, in place, and return the Hessians of its linears by the name of their input."""
    seen: dict[str, Hessian] = {}

    def watch(name: str, linear: torch.nn.Linear, inputs: torch.Tensor) -> None:
        seen.setdefault(name, Hessian(linear)).add(inputs)

    with watched_inputs(layer, watch):
        hidden[:] = decoder.run(layer, hidden)
    return {name: hessian.mean() for name, hessian in seen.items()}


def measure_layer(
    layer: torch.nn.Module, hessians: dict[str, torch.Tensor], evaluations: dict[str, torch.Tensor], group_size: int
) -> dict[str, dict[str, float]]:
    """Return the output error of a layer's linears, by way of rounding and by linear."""
    grid = IntegerGrid(4, group_size, True, torch.float32)
    errors: dict[str, dict[str, float]] = {}
    for shared, linears in SHARING.items():
        hessian, evaluation = hessians[shared], evaluations[shared]
        ours = {name: Measured.of(hessian, group_size, name == SEARCH) for name in (MINMAX, SEARCH)}
        for linear in linears:
            weight = layer.get_submodule(linear).weight.detach()
            found = {
                name: round_as_llm_compressor(weight, hessian, group_size, *observer)
                for name, observer in OBSERVERS.items()
            }
            found |= {name: round_as_ours(weight, grid, measured) for name, measured in ours.items()}
            for name, rounded in found.items():
                errors.setdefault(name, {})[linear] = output_error(weight, rounded, evaluation)
    return errors


def measure(given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the output error over that of llm-compressor's default, by way of rounding and by kind of linear."""
    original = Checkpoint.open(write_noisy(given.checkpoint, given.noisy))
    tokenizer = Tokenizer.from_json(prompts_of(original.folder, original.config).tokenizer_json)
    avoid: set[Path] = set()
    evaluation = documents(EVALUATE, 4, tokenizer, avoid)
    streams = [documents(CALIBRATE, given.documents, tokenizer, avoid), evaluation]
    checkpoint = rotated(original, 0) if given.rotate else untied(original)
    table = checkpoint.tensor("language_model.embed_tokens.weight").read().astype(np.float32)
    hidden: list[list[Array]] = [[table[ids] for ids in stream] for stream in streams]
    decoder, by_layer = Decoder(checkpoint.config.text, torch.device("cpu")), list[dict[str, dict[str, float]]]()
    for index in range(given.layers):
        layer = decoder.layer(checkpoint, index)
        seen = [run_on(decoder, layer, stream) for stream in hidden]
        by_layer.append(measure_layer(layer, *seen, given.group_size))
        print(f"layer {index}: {by_layer[-1]}", flush=True)
    return {name: _ratios(name, by_layer) for name in by_layer[0]}


def _ratios(name: str, by_layer: Sequence[dict[str, dict[str, float]]]) -> dict[str, float]:
    """Return a way's errors, summed over layers, over the default's, by kind of linear, and their mean over kinds."""
    found = {}
    for linear in by_layer[0][name]:
        ours, theirs = (sum(errors[one][linear] for errors in by_layer) for one in (name, DEFAULT))
        found[linear.rpartition(".")[2].removesuffix("_proj")] = ours / theirs
    return found | {"mean": float(np.mean(list(found.values())))}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Output errors of llm-compressor's scales and of ours.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("noisy", type=Path)
    parser.add_argument("--layers", type=int, default=4, metavar="N", help="the first N")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--rotate", action=argparse.BooleanOptionalAction, default=True)
    add_out(parser)
    given = parser.parse_args(arguments)
    torch.set_grad_enabled(False)
    ratios = measure(given)
    print("| | " + " | ".join(next(iter(ratios.values()))) + " |")
    for name, row in ratios.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row.values()) + " |")
    shape = {name: getattr(given, name) for name in ("layers", "group_size", "documents", "rotate")}
    finish({"machine": describe_machine(), **shape, "ratios": ratios}, given.out)


if __name__ == "__main__":
    main()
