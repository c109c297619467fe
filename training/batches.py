"""Samples joined into the tensors of one training step; all pictures of a batch have the same grid."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer

from training import tiles
from training.model import Tensor, patchify
from training.pictures import draw
from training.samples import IGNORE, Sample, Where, encode, make, prefix_text

LONG = 250  # tokens: pictures of 2x2 tiles are batched with pictures of about their length


@dataclass(slots=True)
class Labels:
    """`samples.Where` of many points."""

    character: Tensor
    index: Tensor
    object: Tensor
    look: Tensor
    box: Tensor

    @classmethod
    def of(cls, wheres: list[Where], pad_to: int = 0) -> Labels:
        """Join the labels of several pictures, each padded with nothing to `pad_to` points."""

        def joined(name: str, fill: int) -> Tensor:
            arrays = [getattr(where, name) for where in wheres]
            if pad_to:
                arrays = [
                    np.pad(a, [(0, pad_to - len(a))] + [(0, 0)] * (a.ndim - 1), constant_values=fill) for a in arrays
                ]
            return torch.from_numpy(np.concatenate(arrays))

        fills = {"character": 0, "index": 0, "object": 0, "look": 0, "box": IGNORE}
        return cls(**{name: joined(name, fill) for name, fill in fills.items()})


@dataclass(slots=True)
class Batch:
    """One step's pictures: B pictures of T tiles, N tokens each, S tokens of questions and answers."""

    patches: Tensor  # [B * T, 64, 588] uint8
    patch_labels: Labels  # B * T * 64 points
    packing: Tensor  # [B, N, T * 64 + 1] bf16
    token_labels: Labels  # B * N points
    prefix: Tensor  # [3] ids before the picture
    ids: Tensor  # [B, S]
    targets: Tensor  # [B, S]
    sources: Tensor  # [B, S]
    indices: Tensor  # [B, S]
    positions: Tensor  # [B, 3 + N + S]
    segments: Tensor  # [B, 3 + N + S]


def collate(samples: list[Sample], tokenizer: Tokenizer) -> Batch:
    """Join samples of one grid."""
    prefix = torch.tensor(encode(prefix_text(), tokenizer))
    start = len(prefix)
    counts = [len(sample.plan.indices) for sample in samples]
    width = -(-max(counts) // 16) * 16  # few different shapes: every new one costs its set-up
    asked = -(-max(len(sample.ids) for sample in samples) // 16) * 16
    batch, patches = len(samples), samples[0].plan.num_tiles * tiles.PATCHES
    packing = np.zeros((batch, width, patches + 1), np.float32)
    positions = np.zeros((batch, start + width + asked), np.float32)
    segments = np.full((batch, start + width + asked), -1, np.int64)
    columns = {name: np.full((batch, asked), fill, np.int64) for name, fill in _COLUMNS.items()}
    for i, (sample, count) in enumerate(zip(samples, counts, strict=True)):
        np.add.at(packing[i], (np.arange(count)[:, None], sample.plan.indices), sample.plan.weights)
        length = len(sample.ids)
        positions[i, : start + count] = np.arange(start + count)
        positions[i, start + width : start + width + length] = start + count + sample.positions
        segments[i, : start + count] = 0
        segments[i, start + width : start + width + length] = sample.segments
        for name, column in columns.items():
            column[i, :length] = getattr(sample, name)
    return Batch(
        patches=patchify(torch.from_numpy(np.concatenate([sample.pixels for sample in samples]))),
        patch_labels=Labels.of([sample.patches for sample in samples]),
        packing=torch.from_numpy(packing).bfloat16(),
        token_labels=Labels.of([sample.tokens for sample in samples], pad_to=width),
        prefix=prefix,
        positions=torch.from_numpy(positions),
        segments=torch.from_numpy(segments),
        **{name: torch.from_numpy(column) for name, column in columns.items()},
    )


_COLUMNS = {"ids": 0, "targets": IGNORE, "sources": 0, "indices": 0}


def stream(
    seeds: Iterator[int], size: int, grids: Iterator[tuple[int, int]], pages: float, tokenizer: Tokenizer
) -> Iterator[Batch]:
    """Yield batches of `size` pictures, the grid of each batch taken from `grids`; some are `pages` of words."""
    waiting: dict[tuple[tuple[int, int], bool], list[Sample]] = {}
    for grid in grids:
        while True:
            seed = next(seeds)
            rng = random.Random(~seed)
            content = "page" if pages and rng.random() < pages else None
            sample = make(draw(seed, grid, content), tokenizer, rng)
            alike = waiting.setdefault((grid, len(sample.plan.indices) > LONG), [])
            alike.append(sample)
            if len(alike) == size:
                yield collate(alike, tokenizer)
                alike.clear()
                break
