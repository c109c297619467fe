"""A decoder layer's two halves, attention and MLP, each of which adds to the residual stream.

    behind = front + half(norm(front))

A half's first linears share an input, the stream's norm; its last one gives to the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from varco_export.quantize.layer import LINEARS, Decoder

FIRST = {"self_attn": "self_attn.q_proj", "mlp": "mlp.gate_proj"}
LAST = {"self_attn": "self_attn.o_proj", "mlp": "mlp.down_proj"}
HALVES = tuple(FIRST)
"""In the order in which they run."""
_NORMS = {"self_attn": "input_layernorm", "mlp": "post_attention_layernorm"}

InputRounding = Callable[[torch.Tensor], torch.Tensor]
"""Rounds what flows into a linear, as the kernel will."""


@dataclass(frozen=True, slots=True, eq=False)
class Halves:
    """A layer whose halves run by themselves.

    Args:
        decoder: What all layers share.
        layer: The layer.
        round_inputs: What the kernel rounds the inputs of linears with; None where it takes them as they are.
    """

    decoder: Decoder
    layer: torch.nn.Module
    round_inputs: InputRounding | None = None

    @torch.no_grad()
    def run(self, half: str, front: torch.Tensor) -> torch.Tensor:
        """Return the stream `[S, D]` behind a half, of the one in front of it."""
        module, normed = self.layer.get_submodule(half), self._normed(half, front)[None]
        with self._rounding():
            if half == "mlp":
                added = module(normed)
            else:
                positions = self.decoder.positions(front)
                added, _ = module(hidden_states=normed, position_embeddings=positions, attention_mask=None)
        behind: torch.Tensor = front + added[0]
        return behind

    @torch.no_grad()
    def lack(self, shared: str, front: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what flows into linears `[S, K]`, and what that lacks beside the original.

        Args:
            shared: The linear that gives the input its name.
            front: The stream in front of its half, `[S, D]`.
            wanted: The original's stream: in front of the half for its first linears, behind it for its last.

        Returns:
            The inputs, and of a half's first linears the inputs' difference `[S, K]` from the original's; of its last
            one the difference `[S, D]` of the stream behind it, as long as its weight is as it was.
        """
        half = shared.split(".")[0]
        if shared == FIRST[half]:
            inputs = self._rounded(self._normed(half, front))
            return inputs, self._normed(half, wanted) - inputs
        seen: list[torch.Tensor] = []
        linear = self.layer.get_submodule(shared)
        handle = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
        try:
            behind = self.run(half, front)
        finally:
            handle.remove()
        return self._rounded(seen[0]), wanted - behind

    def _rounded(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs if self.round_inputs is None else self.round_inputs(inputs)

    @contextmanager
    def _rounding(self) -> Iterator[None]:
        """Round what flows into every linear, as long as this lasts."""
        linears = [] if self.round_inputs is None else [self.layer.get_submodule(name) for name in LINEARS]
        handles = [one.register_forward_pre_hook(lambda _, inputs: (self._rounded(inputs[0]),)) for one in linears]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _normed(self, half: str, front: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.layer.get_submodule(_NORMS[half])(front[None])[0]
        return normed
