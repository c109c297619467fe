"""One decoder layer, linear by linear: each is rounded to give what the original gave, whatever came before it.

    F, X    what flows into a linear W in the original, and in the model that is rounded so far
    |W F - Q X|^2  =  |(W + S - Q) X|^2 + what no Q changes,     S = D X^T (X X^T)^-1,   D = W F - W X

So GPTQ rounds W + S with the Hessian of X. o and down give to the residual stream: what they are to give is the
original's stream behind them, less ours in front of them, so that they make up for the stream's own error too. Every
linear is measured behind the rounded ones in front of it, in its own layer too. S is made smaller by what chance alone
explains of D. Source: GPTAQ (arXiv 2504.02692), which has S, but neither the stream's error nor chance.

Between a layer's halves, streams lie on the disk like those between layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from varco_export.quantize.activations import read_activations, write_activations
from varco_export.quantize.grid import to_fp8
from varco_export.quantize.halves import FIRST, HALVES, LAST, Halves
from varco_export.quantize.layer import Decoder, linear_of
from varco_export.quantize.linear import Hessian
from varco_export.quantize.linears import measured_of, on_disk, other_tensors, round_shared
from varco_export.quantize.run import Run
from varco_export.quantize.shard import write_shard
from varco_export.quantize.work import Work
from varco_runtime.dtypes import Array


def compensate_layer(run: Run, work: Work, decoder: Decoder, index: int) -> None:
    """Run one layer as it was, quantize it and run on. Its shard comes last, and means that all is done."""
    layer = decoder.layer(run.checkpoint, index)
    round_inputs = to_fp8 if run.options.method == "fp8" else None
    original, ours = Halves(decoder, layer), Halves(decoder, layer, round_inputs)
    theirs = [_Streams(run, path, run.original_lengths) for path in _places(work, work.originals, index)]
    for number, half in enumerate(HALVES):
        theirs[number + 1].write(original.run(half, stream) for stream in theirs[number].read())
    streams = [_Streams(run, path, run.lengths) for path in _places(work, work.activations, index)]
    stored, errors = other_tensors(run, index), dict[str, float]()
    for number, half in enumerate(HALVES):
        for shared, wanted in ((FIRST[half], theirs[number]), (LAST[half], theirs[number + 1])):
            measured = measured_of(run, _hessian(run, ours, shared, streams[number], wanted), shared == LAST[half])
            stored |= round_shared(run, index, shared, measured, layer, errors)
        streams[number + 1].write(ours.run(half, stream) for stream in streams[number].read())
    work.write_facts(f"layer-{index:05}", errors)
    write_shard(work.shard(index + 1), on_disk(stored))
    work.keep_activations(index + 1)


def _hessian(run: Run, halves: Halves, shared: str, front: _Streams, wanted: _Streams) -> Hessian:
    """Measure what flows into the linears that share an input, and what it lacks."""
    hessian, some = Hessian(linear_of(halves.layer, shared)), slice(len(run.samples))
    for ours, theirs, weights in zip(front.read(some), wanted.read(some), run.token_weights(), strict=True):
        inputs, lack = halves.lack(shared, ours, theirs)
        hessian.add(inputs, lack, torch.from_numpy(weights).to(run.device))
    return hessian


def _places(work: Work, path_of: Callable[[int], Path], index: int) -> list[Path]:
    """Return where a layer's streams lie: in front of it, between its halves, and behind it."""
    return [path_of(index), work.between(path_of(index)), path_of(index + 1)]


@dataclass(frozen=True, slots=True)
class _Streams:
    """The residual stream at one place, of all samples."""

    run: Run
    path: Path
    lengths: Sequence[int]

    def read(self, some: slice = slice(None)) -> Iterator[torch.Tensor]:
        """Yield the stream `[S, D]` of every sample."""
        width = self.run.checkpoint.config.text.hidden_size
        for sample in read_activations(self.path, self.lengths, width, some):
            yield torch.from_numpy(sample).to(self.run.device)

    def write(self, samples: Iterator[torch.Tensor]) -> None:
        """Write the stream of every sample."""
        arrays: Iterator[Array] = (sample.cpu().numpy() for sample in samples)
        write_activations(self.path, arrays)
