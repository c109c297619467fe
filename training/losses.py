"""The losses: next token inside answers, and training-only heads that tell the network early what to look for.

On every projected patch: the characters at three probes, their place in the word, the object, its look and its box.
In the middle of the decoder the same for the picture's tokens, now in the order of the whole picture. And two attention
heads of one decoder layer are shown which tokens hold the character, or the object, that the answer names next.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from training.batches import Batch, Labels
from training.model import Network, Tensor, Weights
from training.samples import IGNORE, NUM_BINS, NUM_CHARACTERS, NUM_INDICES, NUM_LOOKS, NUM_OBJECTS

HEADS = {
    "character": 3 * NUM_CHARACTERS,
    "index": 3 * NUM_INDICES,
    "object": NUM_OBJECTS,
    "look": NUM_LOOKS,
    "box": 4 * NUM_BINS,
}
GROUPS = ("patch", "token")
ROWS = 512  # row counts are multiples of this where they can be: every new shape of a product costs its set-up


def initial_heads(hidden: int, seed: int) -> Weights:
    """Return fresh weights of the training-only heads."""
    generator = torch.Generator().manual_seed(seed)
    heads: Weights = {}
    for group in GROUPS:
        for name, size in HEADS.items():
            heads[f"heads.{group}.{name}.weight"] = torch.randn(size, hidden, generator=generator) * 0.02
            heads[f"heads.{group}.{name}.bias"] = torch.zeros(size)
    return heads


def _classes(logits: Tensor, labels: Tensor, rare: bool) -> tuple[Tensor, Tensor]:
    """Return the loss and the accuracy on what is there; `rare` weighs the many empty places down."""
    loss = F.cross_entropy(logits.float(), labels, reduction="none", ignore_index=IGNORE)
    there = labels > 0 if rare else labels >= 0
    right = (logits.argmax(-1) == labels)[there].float().mean() if bool(there.any()) else torch.ones(())
    here = (loss * there).sum() / there.sum().clamp(min=1)
    if not rare:
        return here, right
    empty = labels == 0
    return here + 0.3 * (loss * empty).sum() / empty.sum().clamp(min=1), right


def places(network: Network, states: Tensor, labels: Labels, group: str) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of one group of heads on states [P, hidden], and their accuracies."""
    total, notes = states.new_zeros((), dtype=torch.float32), {}
    busy = (labels.object > 0) | (labels.look > 0) | (labels.character > 0).any(-1) | (labels.box[:, 0] >= 0)
    empty = (~busy).nonzero()[:, 0]
    occupied = busy.nonzero()[:, 0]
    wanted = -(-max(64, len(occupied) * 3 // 2) // ROWS) * ROWS
    chosen = torch.cat([occupied, empty[torch.randperm(len(empty))[: wanted - len(occupied)]]])
    picked = states[chosen]
    for name, weight in (("character", 1.0), ("index", 0.5), ("object", 0.5), ("look", 0.5)):
        size = {"character": NUM_CHARACTERS, "index": NUM_INDICES}.get(name, HEADS[name])
        logits = network.linear(picked, f"heads.{group}.{name}").view(-1, size)
        loss, right = _classes(logits, getattr(labels, name)[chosen].view(-1), rare=True)
        total, notes[f"{group}.{name}"] = total + weight * loss, float(right)
    logits = network.linear(picked, f"heads.{group}.box").view(-1, NUM_BINS)
    loss, _ = _classes(logits, labels.box[chosen].view(-1), rare=False)
    notes[f"{group}.box"] = float(loss.detach())
    return total + 0.4 * loss, notes


def pointing(pointer: Tensor, batch: Batch, start: int) -> Tensor:
    """Return how far two heads are from looking at what the answer names next."""
    tokens = batch.token_labels
    count = batch.packing.shape[1]
    rows = batch.sources.shape[0]
    objects = tokens.object.view(rows, 1, count)
    indices = tokens.index.view(rows, 1, count, 3)
    total = pointer.new_zeros((), dtype=torch.float32)
    wanted = batch.sources > 0
    for head, on in ((0, wanted & (batch.indices > 0)), (1, wanted)):
        target = objects == batch.sources[:, :, None]
        if head == 0:
            target = target & (indices == batch.indices[:, :, None, None]).any(-1)
        seen = (pointer[:, head, 0, :, start : start + count].float() * target).sum(-1)
        on = on & target.any(-1)
        total = total - (torch.log(seen + 1e-4) * on).sum() / on.sum().clamp(min=1)
    return total


def answers(network: Network, states: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """Return the loss of the answers' tokens and their accuracy."""
    logits = network.logits(states.flatten(0, 1))
    labels = targets.flatten()
    right = (logits.argmax(-1) == labels)[labels >= 0].float().mean()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE), float(right)
