"""The stages of the training: what each draws, for how many steps, at which learning rates."""

from __future__ import annotations

from dataclasses import dataclass

from training.tiles import GRIDS

Grid = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates of one step: of Muon and of AdamW, each with its own for the vision tower."""

    muon: float
    muon_vision: float
    adam: float
    adam_vision: float


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of the training; a step of a worker goes through one batch of `batch` pictures per entry of `grids`.

    An entry lists the grids to choose from.
    """

    name: str
    steps: int
    batch: int
    grids: tuple[tuple[Grid, ...], ...]
    rates: Rates
    hold: float = 0.4  # of the steps before the learning rate falls
    warm_up: int = 50
    floor: float = 0.03
    decoder: bool = True
    patch_weight: float = 1.0
    pages: float = 0.0  # share of pictures full of words
    side_pages: int = 0  # pictures full of words that the tower alone reads beside each step

    def rates_at(self, step: int) -> Rates:
        """Return the learning rates of a step."""
        left = (self.steps - step) / max(1, self.steps * (1 - self.hold))
        factor = min(1.0, (step + 1) / self.warm_up, max(self.floor, left))
        rates = self.rates
        return Rates(*(factor * r for r in (rates.muon, rates.muon_vision, rates.adam, rates.adam_vision)))


ONE, TWO, FOUR = GRIDS[:1], GRIDS[1:3], GRIDS[3:]
MIX = (ONE + TWO, FOUR)
STAGES = (
    Stage(
        name="vision",
        steps=2070,
        batch=16,
        grids=(ONE + TWO + FOUR * 2,),
        rates=Rates(0.005, 0.005, 1e-3, 1e-3),
        hold=0.7,
        floor=0.35,
        decoder=False,
        pages=0.75,
    ),
    Stage("base", 250, 8, (ONE, ONE), Rates(0.006, 0.002, 1e-3, 4e-4), hold=1.0, side_pages=4),
    Stage("all", 496, 8, MIX, Rates(0.005, 0.002, 1e-3, 4e-4), hold=1.0, patch_weight=0.3, side_pages=4),
    Stage("fine", 450, 14, MIX, Rates(0.005, 0.002, 1e-3, 4e-4), hold=0.0, patch_weight=0.3, side_pages=6),
    Stage(
        name="polish",
        steps=270,
        batch=14,
        grids=MIX,
        rates=Rates(0.003, 0.0012, 6e-4, 2.5e-4),
        hold=0.0,
        warm_up=10,
        patch_weight=0.3,
        side_pages=6,
    ),
)
