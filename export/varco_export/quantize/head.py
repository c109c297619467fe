"""The last norm and the output head: rounded like any linear, and what the whole model lost by all rounding.

The head is read, rounded and multiplied a run of rows (words) at a time, so that no more of it is ever held than what
is saved. KL divergence over all words is added up as they come, from logits that are forgotten at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.quantize.activations import read_activations
from varco_export.quantize.feedback import TRIED_ROWS
from varco_export.quantize.linear import Hessian, join_rows, make_grid, output_energies, quantize_linear
from varco_export.quantize.linears import measured_of, tell_rounded
from varco_export.quantize.rest import HEAD
from varco_export.quantize.run import Run
from varco_export.quantize.shard import Stored
from varco_export.quantize.weights import TORCH_DTYPES, exact_rows, read_weight
from varco_export.quantize.work import Work
from varco_export.reading.tensor import NUMPY_DTYPES
from varco_runtime.dtypes import Array

_ROWS = 4096  # of the head at a time; a multiple of 32, which is how zero points are packed
_TOKENS = 256  # of each held-out sample, the last ones: the question and the answer


@dataclass(slots=True)
class Divergence:
    """KL divergence from one distribution over words to another, for each of n tokens, words by the block."""

    largest: torch.Tensor
    sums: torch.Tensor
    weighted: torch.Tensor
    other_largest: torch.Tensor
    other_sums: torch.Tensor

    @classmethod
    def of_tokens(cls, num_tokens: int) -> Divergence:
        """Return a divergence over no words yet."""
        low = torch.full((num_tokens,), -math.inf, dtype=torch.float64)
        zero = torch.zeros(num_tokens, dtype=torch.float64)
        return cls(low, zero, zero.clone(), low.clone(), zero.clone())

    def add(self, logits: torch.Tensor, other: torch.Tensor) -> None:
        """Count in the logits `[n, words]` of some words, by the first model and by the other."""
        logits, other = logits.double(), other.double()
        largest = torch.maximum(self.largest, logits.amax(1))
        shrink = (self.largest - largest).exp()
        weights = (logits - largest[:, None]).exp()
        self.sums = self.sums * shrink + weights.sum(1)
        self.weighted = self.weighted * shrink + (weights * (logits - other)).sum(1)
        self.largest = largest
        other_largest = torch.maximum(self.other_largest, other.amax(1))
        shrink = (self.other_largest - other_largest).exp()
        self.other_sums = self.other_sums * shrink + (other - other_largest[:, None]).exp().sum(1)
        self.other_largest = other_largest

    def mean(self) -> float:
        """Return the mean over tokens, in nats."""
        normalizers = (self.largest + self.sums.log()) - (self.other_largest + self.other_sums.log())
        return float((self.weighted / self.sums - normalizers).mean())


def finish_head(run: Run, work: Work) -> dict[str, Stored] | None:
    """Round the head if that is asked for, and measure the model on what was held out.

    Returns:
        The head's tensors by canonical name; None for those of the checkpoint.
    """
    if run.head_scheme is None and not run.held:
        return None
    measured = None
    if run.head_scheme is not None:
        measured = measured_of(run, _hessian(run, work))
        if not measured.factors:
            tell_rounded(run, HEAD)
        tensor = run.checkpoint.tensor(HEAD)
        words = range(0, tensor.shape[0], -(-tensor.shape[0] // TRIED_ROWS))
        some = np.concatenate([exact_rows(tensor, word, word + 1) for word in words])
        grid = make_grid(run.head_scheme, TORCH_DTYPES[tensor.dtype])
        measured = measured.decided(measured.wanted(torch.from_numpy(some).to(run.device)), grid)
    ours, theirs = _held_states(run, work) if run.held else (None, None)
    divergence = Divergence.of_tokens(0 if ours is None else len(ours))
    parts: list[dict[str, torch.Tensor]] = []
    energies = torch.zeros(2, dtype=torch.float64)
    tensor = run.checkpoint.tensor(HEAD)
    steps = range(0, tensor.shape[0], _ROWS)
    with run.progress.stage("head", len(steps)) as advance:
        for start in steps:
            exact = torch.from_numpy(exact_rows(tensor, start, min(start + _ROWS, tensor.shape[0]))).to(run.device)
            rounded = exact.cpu().numpy().astype(NUMPY_DTYPES[tensor.dtype]).astype("float32")
            saved = torch.from_numpy(rounded).to(run.device)
            if run.head_scheme is not None and measured is not None:
                wanted = measured.wanted(exact)
                found = quantize_linear(wanted, TORCH_DTYPES[tensor.dtype], run.head_scheme, measured)
                saved = found.weight
                parts.append(found.tensors)
                energies += torch.tensor(output_energies(wanted, saved, measured.hessian), dtype=torch.float64)
            if ours is not None and theirs is not None:
                divergence.add((theirs @ exact.T).cpu(), (ours @ saved.T).cpu())
            advance()
    facts: dict[str, float] = {} if ours is None else {"kl": divergence.mean(), "tokens": len(ours)}
    if parts:
        facts["output_error"] = float(energies[0] / energies[1])
    work.write_facts("head", facts)
    if not parts:
        return None
    return {f"lm_head.{last}": Stored.of_torch(one) for last, one in join_rows(parts).items()}


def _hessian(run: Run, work: Work) -> Hessian:
    """Measure what flows into the head."""
    width = run.checkpoint.config.text.hidden_size
    with torch.device("meta"):
        shape = torch.nn.Linear(width, 1)
    hessian = Hessian(shape.to_empty(device=run.device))

    def on(sample: Array) -> torch.Tensor:
        return normed(run.checkpoint, torch.from_numpy(sample).to(run.device))

    some = slice(len(run.samples))
    ours = (on(one) for one in read_activations(work.activations(run.num_layers), run.lengths, width, some))
    if not run.options.compensates:
        for stream in ours:
            hessian.add(stream)
        return hessian
    weights = (torch.from_numpy(one).to(run.device) for one in run.token_weights())
    theirs = read_activations(work.originals(run.num_layers), run.original_lengths, width, some)
    for stream, original, of_tokens in zip(ours, theirs, weights, strict=True):
        hessian.add(stream, on(original) - stream, of_tokens)
    return hessian


def _held_states(run: Run, work: Work) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what flows into the head for the last tokens of what is held out: by the new model, and by the old."""
    width, index = run.checkpoint.config.text.hidden_size, run.num_layers
    held = slice(len(run.samples), None)
    all_ours = read_activations(work.activations(index), run.lengths, width, held)
    some = slice(len(run.original_samples) - len(run.held), None)
    all_theirs = read_activations(work.originals(index), run.original_lengths, width, some)
    ours, theirs = (
        torch.cat([torch.from_numpy(sample[-_TOKENS:].copy()) for sample in samples])
        for samples in (all_ours, all_theirs)
    )
    return normed(run.checkpoint, ours.to(run.device)), normed(run.checkpoint, theirs.to(run.device))


def normed(checkpoint: Checkpoint, hidden: torch.Tensor) -> torch.Tensor:
    """Return what the last norm makes of hidden states `[S, D]`."""
    gain = read_weight(checkpoint, "language_model.norm.weight").to(hidden.device)
    variance = hidden.square().mean(-1, keepdim=True)
    return hidden * torch.rsqrt(variance + checkpoint.config.text.rms_norm_eps) * gain
