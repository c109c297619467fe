"""Layer by layer: measure, round, save, run on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from varco_export.quantize.activations import read_activations, write_activations
from varco_export.quantize.compensated import compensate_layer
from varco_export.quantize.embeddings import embed_samples
from varco_export.quantize.layer import LINEARS, SHARED_INPUT, Decoder, layer_name, watched_inputs
from varco_export.quantize.linear import Hessian, quantize_linear
from varco_export.quantize.linears import measured_of, on_disk, other_tensors, round_shared
from varco_export.quantize.run import Run
from varco_export.quantize.shard import Stored, write_shard
from varco_export.quantize.weights import TORCH_DTYPES, read_weight
from varco_export.quantize.work import Work
from varco_runtime.dtypes import Array


def quantize_layers(run: Run, work: Work) -> None:
    """Write a shard for every layer that has none yet, and what flows out of the last one."""
    done = next((index for index in range(run.num_layers) if not work.shard(index + 1).exists()), run.num_layers)
    if done:
        run.progress.note(f"Continuing an earlier run: {done} of {run.num_layers} layers are finished.")
    if run.samples and done == 0 and not work.activations(0).exists():
        _embed(run, work)
    decoder = Decoder(run.checkpoint.config.text, run.device) if run.samples else None
    with run.progress.stage("layers", run.num_layers, done) as advance:
        for index in range(done, run.num_layers):
            if decoder is None:
                write_shard(work.shard(index + 1), _plain_layer(run, index))
            elif run.options.compensates:
                compensate_layer(run, work, decoder, index)
            else:
                _calibrated_layer(run, work, decoder, index)
            advance()


def _embed(run: Run, work: Work) -> None:
    """Write what flows into the first layer, and once more what also goes through the layers as they were."""
    image_token_id = run.prompts.prompt.image_token_id
    with run.progress.stage("pictures", len(run.lengths)) as advance:

        def counted(samples: list[Any]) -> Iterator[Array]:
            for sample in embed_samples(run.checkpoint, samples, image_token_id, run.device):
                yield sample
                advance()

        if run.original_samples:
            embeds = embed_samples(run.checkpoint, run.original_samples, image_token_id, run.device)
            write_activations(work.originals(0), embeds)
        write_activations(work.activations(0), counted([*run.samples, *run.held]))


def _calibrated_layer(run: Run, work: Work, decoder: Decoder, index: int) -> None:
    """Measure one layer, quantize it and run on. Its shard comes last, and means that all is done."""
    width = run.checkpoint.config.text.hidden_size

    def inputs(some: slice = slice(None)) -> Iterator[Array]:
        return read_activations(work.activations(index), run.lengths, width, some)

    layer = decoder.layer(run.checkpoint, index)
    hessians: dict[str, Hessian] = {}

    def watch(name: str, linear: torch.nn.Linear, values: torch.Tensor) -> None:
        if name not in hessians:
            hessians[name] = Hessian(linear)
        hessians[name].add(values)

    with watched_inputs(layer, watch):
        for _ in decoder.run(layer, inputs(slice(len(run.samples)))):
            pass
    if run.held:
        originals = read_activations(work.originals(index), run.original_lengths, width)
        write_activations(work.originals(index + 1), decoder.run(layer, originals))
    tensors, errors = _measured_layer(run, index, hessians, layer)
    work.write_facts(f"layer-{index:05}", errors)
    write_activations(work.activations(index + 1), decoder.run(layer, inputs()))
    write_shard(work.shard(index + 1), tensors)
    work.keep_activations(index + 1)


def _measured_layer(
    run: Run, index: int, hessians: dict[str, Hessian], layer: torch.nn.Module
) -> tuple[dict[str, Stored], dict[str, float]]:
    """Return the tensors of a layer's shard, and each linear's output error; `layer` gets the quantized weights.

    The Hessians are used up. Linears that share an input share its Hessian and an order.
    """
    stored, errors = other_tensors(run, index), dict[str, float]()
    for shared in dict.fromkeys(SHARED_INPUT.values()):
        stored |= round_shared(run, index, shared, measured_of(run, hessians.pop(shared)), layer, errors)
    return on_disk(stored), errors


def _plain_layer(run: Run, index: int) -> dict[str, Stored]:
    """Return the tensors of a layer's shard, its linears rounded to the nearest, or left as they are."""
    stored = other_tensors(run, index)
    for linear in LINEARS:
        name = f"{layer_name(index)}.{linear}.weight"
        tensor = run.checkpoint.tensor(name)
        if run.scheme is None:
            stored[name] = Stored.of_checkpoint(tensor)
            continue
        weight = read_weight(run.checkpoint, name).to(run.device)
        found = quantize_linear(weight, TORCH_DTYPES[tensor.dtype], run.scheme, None)
        stem = name.removesuffix("weight")
        stored |= {stem + last: Stored.of_torch(one) for last, one in found.tensors.items()}
    return on_disk(stored)
