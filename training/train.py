"""`python -m training.train --seed 0 --out models/varco-tiny`: train the checkpoint, from nothing, on a CPU.

The stages, each with its own stream of pictures (`stages.py`): `vision` (the tower and projector alone, on heads that
are thrown away), `base` (the decoder joins, single-tile pictures), `all` (every kind), `fine` and `polish` (larger
batches, the learning rate falls to nothing). Each worker is one process with one thread; the workers draw their own
pictures and sum their gradients in shared memory. What is exported is a moving average of the weights.
A run writes `run/state.pt` every two minutes and continues from it; `run/log.jsonl` is the learning curve.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from training import checkpoint, losses, tokenizer
from training.batches import Batch, stream
from training.model import Network, Sizes, Tensor, Weights, attention_bias, initial
from training.optimizer import Optimizer
from training.pictures import training_seeds
from training.stages import STAGES, Grid, Stage
from training.tiles import GRIDS

PAGES = 4  # from a worker's stream of pictures to its stream of pages: there are at most four workers


def loss_of(network: Network, batch: Batch, decoder: bool, patch_weight: float) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of one batch and what to log."""
    features = network.encode(batch.patches)
    hidden = network.sizes.hidden
    loss, notes = losses.places(network, features.reshape(-1, hidden), batch.patch_labels, "patch")
    if not decoder:
        return loss, notes
    rows, width = batch.packing.shape[:2]
    packed = network.pack(features.view(rows, -1, hidden), batch.packing)
    start = len(batch.prefix)
    x = torch.cat([network.embed(batch.prefix.expand(rows, -1)), packed.float(), network.embed(batch.ids)], 1)
    states, middle, pointer = network.decode(x, batch.positions, attention_bias(batch.segments), batch.ids.shape[1])
    token_loss, more = losses.places(
        network, middle[:, start : start + width].reshape(-1, hidden), batch.token_labels, "token"
    )
    pointing = losses.pointing(pointer, batch, start)
    answer, notes["right"] = losses.answers(network, states, batch.targets)
    notes |= more | {"pointing": float(pointing.detach()), "answer": float(answer.detach())}
    return answer + patch_weight * (loss + token_loss + 0.5 * pointing), notes


def grids(stage: Stage, seed: int, start: int) -> Iterator[Grid]:
    """Yield the grid of every batch, the same in every worker."""
    for step in count(start):
        rng = random.Random(f"{seed} {stage.name} {step}")
        yield from (rng.choice(choice) for choice in stage.grids)


class Worker:
    """One process of the run."""

    def __init__(self, rank: int, options: argparse.Namespace, shared: Any, barrier: Any) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(options.seed * 2 + rank)
        self.rank, self.options, self.sizes = rank, options, Sizes()
        self.tokenizer = tokenizer.build()
        self.weights: Weights = initial(self.sizes, options.seed) | losses.initial_heads(
            self.sizes.hidden, options.seed
        )
        self.optimizer = Optimizer(self.weights, rank, options.workers, shared, barrier)
        self.average: Weights = {}
        self.folder = Path(options.run)
        self.done, self.step = 0, 0  # stages, steps of the present stage
        self.seconds, self.pictures = 0.0, 0
        if (self.folder / "state.pt").exists():
            self._load(torch.load(self.folder / "state.pt"))
        for tensor in self.weights.values():
            tensor.requires_grad_(True)

    def _load(self, state: dict[str, Any]) -> None:
        for name, tensor in state["weights"].items():
            self.weights[name].copy_(tensor)
        self.optimizer.load(state["optimizer"])
        self.average = state["average"]
        self.done, self.step, self.seconds, self.pictures = (
            state[key] for key in ("done", "step", "seconds", "pictures")
        )

    def save(self) -> None:
        """Write the state of the run, whole or not at all."""
        if self.rank:
            return
        state = {
            "weights": {name: tensor.detach() for name, tensor in self.weights.items()},
            "optimizer": self.optimizer.state(),
            "average": self.average,
            "done": self.done,
            "step": self.step,
            "seconds": self.seconds,
            "pictures": self.pictures,
        }
        torch.save(state, self.folder / "state.tmp")
        os.replace(self.folder / "state.tmp", self.folder / "state.pt")

    def run(self, stages: list[Stage]) -> None:
        """Run the stages that are not done yet."""
        for number, stage in enumerate(stages):
            if number < self.done:
                continue
            self.run_stage(stage, number)
            self.done, self.step = number + 1, 0
            self.save()

    def run_stage(self, stage: Stage, number: int) -> None:
        """Run one stage, or the rest of it."""
        options, begun, saved, first = self.options, time.time(), time.time(), self.seconds
        stream_number = 1 + (options.seed * 16 + number) * 8 + self.rank
        pictures = stage.batch * len(stage.grids)
        seeds = training_seeds(stream_number, self.step * pictures)
        batches = stream(seeds, stage.batch, grids(stage, options.seed, self.step), stage.pages, self.tokenizer)
        page_seeds = training_seeds(stream_number + PAGES, self.step * stage.side_pages)
        page_grids = (random.Random(f"{options.seed} page {n}").choice(GRIDS[1:]) for n in count(self.step))
        pages = stream(page_seeds, stage.side_pages, page_grids, 1.0, self.tokenizer)
        while self.step < stage.steps:
            notes: dict[str, float] = {}
            for _ in stage.grids:
                network = Network(self.weights, self.sizes)
                loss, notes = loss_of(network, next(batches), stage.decoder, stage.patch_weight)
                (loss / len(stage.grids)).backward()  # type: ignore[no-untyped-call]
            if stage.side_pages:
                page_loss, _ = loss_of(Network(self.weights, self.sizes), next(pages), False, 1.0)
                page_loss.backward()  # type: ignore[no-untyped-call]
            norm = self.optimizer.step(stage.rates_at(self.step), stage.decoder)
            self.step += 1
            self.pictures += pictures * options.workers
            self.seconds = first + time.time() - begun
            self._average(stage)
            if self.rank == 0 and (self.step % 20 == 0 or self.step < 4):
                self.log(stage, notes | {"loss": float(loss.detach()), "norm": norm})
            if time.time() - saved > 120:
                self.save()
                saved = time.time()

    @torch.no_grad()
    def _average(self, stage: Stage) -> None:
        """Keep the moving average of the weights that is exported."""
        if self.rank or not stage.decoder or self.step % 4:
            return
        for name, tensor in self.weights.items():
            if name in self.average:
                self.average[name].lerp_(tensor, 0.02)
            else:
                self.average[name] = tensor.detach().clone()

    def log(self, stage: Stage, notes: dict[str, float]) -> None:
        """Add a line to the learning curve."""
        line = {"stage": stage.name, "step": self.step, "seconds": round(self.seconds, 1), "pictures": self.pictures}
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line | {name: round(value, 4) for name, value in notes.items()}) + "\n")


def work(rank: int, options: argparse.Namespace, shared: Any, barrier: Any) -> None:
    """Be one worker."""
    worker = Worker(rank, options, shared, barrier)
    worker.run([resized(stage, options) for stage in STAGES])
    if rank == 0:
        weights = {name: tensor for name, tensor in worker.average.items() if not name.startswith("heads.")}
        checkpoint.save(weights, worker.sizes, Path(options.out))


def resized(stage: Stage, options: argparse.Namespace) -> Stage:
    """Return the stage with the number of steps asked for."""
    steps = dict(item.split("=") for item in options.steps)
    return dataclasses.replace(stage, steps=int(steps.get(stage.name, stage.steps)))


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="models/varco-tiny")
    parser.add_argument("--run", default="training/run", help="where the state and the log are kept")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", nargs="*", default=[], metavar="STAGE=N", help="other numbers of steps")
    options = parser.parse_args()
    Path(options.run).mkdir(parents=True, exist_ok=True)
    numel = sum(t.numel() for t in (initial(Sizes(), 0) | losses.initial_heads(Sizes().hidden, 0)).values())
    processes: Any = mp
    shared: Any = torch.zeros(options.workers, numel)
    shared.share_memory_()
    barrier = processes.get_context("spawn").Barrier(options.workers)
    processes.start_processes(work, (options, shared, barrier), nprocs=options.workers, start_method="spawn")


if __name__ == "__main__":
    main()
