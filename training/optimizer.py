"""Muon for the matrices, AdamW for everything else, and the sum of two workers' gradients in shared memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from training.model import VISION, Tensor, Weights
from training.stages import Rates


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Whether Muon updates this tensor: the matrices inside the layers."""
    return tensor.dim() == 2 and ("layers." in name or name.startswith("multi_modal_projector"))


def is_vision(name: str) -> bool:
    """Whether the vision stage trains this tensor."""
    return name.startswith((VISION, "multi_modal_projector", "heads.patch"))


def orthogonalised(update: Tensor) -> Tensor:
    """Return the update with its singular values pushed to about 1 (five Newton-Schulz steps in bf16)."""
    x = update.bfloat16()
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    result: Tensor = (x.T if tall else x).float()
    return result


@dataclass(slots=True)
class Optimizer:
    """One worker's optimizer; every worker holds all weights and makes the same update.

    `shared` is [workers, numel] of gradients; each worker orthogonalises only its part of the matrices.
    """

    weights: Weights
    rank: int = 0
    workers: int = 1
    shared: Tensor | None = None
    barrier: Any = None
    decay: float = 0.01
    first: Weights = field(default_factory=dict)
    second: Weights = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        for name, tensor in self.weights.items():
            self.first.setdefault(name, torch.zeros_like(tensor))
            if not is_matrix(name, tensor):
                self.second.setdefault(name, torch.zeros_like(tensor))

    def _exchange(self, parts: Weights) -> None:
        """Replace every worker's tensors by their sum."""
        if self.shared is None:
            return
        mine, offset = self.shared[self.rank], 0
        for tensor in parts.values():
            mine[offset : offset + tensor.numel()] = tensor.flatten()
            offset += tensor.numel()
        self.barrier.wait()
        total, offset = self.shared[:, :offset].sum(0), 0
        for tensor in parts.values():
            tensor.copy_(total[offset : offset + tensor.numel()].view_as(tensor))
            offset += tensor.numel()
        self.barrier.wait()

    @torch.no_grad()
    def step(self, rates: Rates, decoder: bool = True, max_norm: float = 1.0) -> float:
        """Update the weights (without `decoder`: those of the vision) and return the gradients' norm."""
        self.count += 1
        weights = {name: tensor for name, tensor in self.weights.items() if decoder or is_vision(name)}
        gradients = {
            name: tensor.grad / self.workers if tensor.grad is not None else torch.zeros_like(tensor)
            for name, tensor in weights.items()
        }
        self._exchange(gradients)
        norm = float(torch.sqrt(sum((g.square().sum() for g in gradients.values()), torch.zeros(()))))
        scale = min(1.0, max_norm / (norm + 1e-6))
        matrices = [name for name, tensor in weights.items() if is_matrix(name, tensor)]
        updates = {name: torch.zeros_like(self.weights[name]) for name in matrices}
        for position, name in enumerate(matrices):
            momentum = self.first[name].lerp_(gradients[name], 0.05)
            if position % self.workers == self.rank:
                updates[name] = orthogonalised(gradients[name].lerp(momentum, 0.95))
        self._exchange(updates)
        for name, tensor in weights.items():
            vision = name.startswith(VISION)
            if name in updates:
                rate = rates.muon_vision if vision else rates.muon
                rows, columns = tensor.shape
                tensor.mul_(1 - rate * self.decay)
                tensor.sub_(updates[name], alpha=rate * max(1.0, rows / columns) ** 0.5)
            else:
                rate = rates.adam_vision if vision or "heads.patch" in name else rates.adam
                self._adam(name, tensor, gradients[name] * scale, rate)
            tensor.grad = None
        return norm

    def _adam(self, name: str, tensor: Tensor, gradient: Tensor, rate: float) -> None:
        first = self.first[name].lerp_(gradient, 0.1)
        second = self.second[name].lerp_(gradient.square(), 0.05)
        first = first / (1 - 0.9**self.count)  # fresh tensors of a later stage start smaller, under its warm-up
        second = second / (1 - 0.95**self.count)
        tensor.addcdiv_(first, second.sqrt().add_(1e-8), value=-rate)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"first": self.first, "second": self.second, "count": self.count}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        for own, saved in ((self.first, state["first"]), (self.second, state["second"])):
            for name, tensor in saved.items():
                own[name].copy_(tensor)
        self.count = state["count"]
