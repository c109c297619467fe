"""The numbers that a weight may be rounded to: integers in groups of columns, or FP8 in rows.

Columns of a weight stand in rows here, `[k, N]`: error feedback goes through them one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

FP8_MAX = 448.0
_SHRINK = (0.6, 1.1)
_STEPS = 21
_FP8_STEPS = 12
_PARTS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
# Parts of the lower and of the upper end, of a grid with zero points.
_ENDS = tuple((low, high) for low in _PARTS for high in _PARTS if abs(low - high) < 0.22)

Scales = tuple[torch.Tensor, torch.Tensor | None]
"""A scale `[N]` for each output feature, and a zero point `[N]` or none."""


class Grid(Protocol):
    """Numbers that a group of columns may be rounded to."""

    @property
    def group_size(self) -> int | None:
        """Return the columns that share a scale; None where a whole row does."""

    def scales(self, columns: torch.Tensor, importance: torch.Tensor | None) -> Scales:
        """Return scales and zero points for a group of columns `[k, N]`.

        Args:
            columns: The weights.
            importance: `[k]`, what a squared error in each column weighs; None for the extremes of the group.
        """

    def round(self, columns: torch.Tensor, scales: Scales) -> torch.Tensor:
        """Return columns `[..., N]` rounded to the grid."""


@dataclass(frozen=True, slots=True)
class IntegerGrid:
    """Integers of `bits` bits, with a scale per group, and a zero point where not symmetric.

    Args:
        bits: 4 or 8.
        group_size: Columns that share a scale.
        symmetric: Whether there are no zero points. Scales are positive: TensorRT takes no others.
        dtype: What scales are stored in; they are rounded to it before anything is measured with them.
    """

    bits: int
    group_size: int
    symmetric: bool
    dtype: torch.dtype

    def scales(self, columns: torch.Tensor, importance: torch.Tensor | None) -> Scales:
        """Return scales and zero points: the extremes', or those of least weighted squared error."""
        tried = self._symmetric(columns, importance) if self.symmetric else self._with_zeros(columns, importance)
        best = next(tried)
        if importance is None:
            return best
        least = self._error(columns, best, importance)
        for scale, zero in tried:
            error = self._error(columns, (scale, zero), importance)
            is_less = error < least
            least = torch.where(is_less, error, least)
            kept = best[1] if zero is None or best[1] is None else torch.where(is_less, zero, best[1])
            best = torch.where(is_less, scale, best[0]), kept
        return best

    def round(self, columns: torch.Tensor, scales: Scales) -> torch.Tensor:
        """Return columns rounded to the grid."""
        scale, zero = scales
        half = 1 << (self.bits - 1)
        values = columns / scale
        if zero is None:
            return values.round_().clamp_(-half, half - 1).mul_(scale)
        return values.round_().add_(zero).clamp_(-half, half - 1).sub_(zero).mul_(scale)

    def _error(self, columns: torch.Tensor, scales: Scales, importance: torch.Tensor) -> torch.Tensor:
        return importance @ self.round(columns, scales).sub_(columns).square_()  # [N]

    def _symmetric(self, columns: torch.Tensor, importance: torch.Tensor | None) -> Iterator[Scales]:
        """Yield the scales to try, first those that llm-compressor's `memoryless_minmax` gives."""
        largest = columns.abs().amax(0)
        steps = ((1 << self.bits) - 1) / 2
        yield self._stored(largest / steps), None
        if importance is not None:
            for factor in torch.linspace(*_SHRINK, _STEPS).tolist():
                yield self._stored(largest * (factor / steps)), None

    def _with_zeros(self, columns: torch.Tensor, importance: torch.Tensor | None) -> Iterator[Scales]:
        """Yield the scales and zero points to try, first those that reach from the smallest entry to the largest."""
        low, high = columns.amin(0).clamp(max=0), columns.amax(0).clamp(min=0)
        levels, half = (1 << self.bits) - 1, 1 << (self.bits - 1)
        for down, up in _ENDS if importance is not None else _ENDS[:1]:
            scale = self._stored((high * up - low * down) / levels)
            yield scale, ((-low * down) / scale).round_().sub_(half).clamp_(-half, half - 1)

    def _stored(self, scale: torch.Tensor) -> torch.Tensor:
        scale = scale.to(self.dtype).float()
        return torch.where(scale == 0, torch.full_like(scale, torch.finfo(self.dtype).eps), scale)


@dataclass(frozen=True, slots=True)
class Fp8Grid:
    """Float8 E4M3 with a scale per row."""

    dtype: torch.dtype
    group_size: None = None

    def scales(self, columns: torch.Tensor, importance: torch.Tensor | None) -> Scales:
        """Return the scales with which each row's largest entry is the largest of float8, or searched ones.

        Twice a scale gives the same values but for the smallest, so an octave is searched, and nothing is clipped.
        """
        smallest = columns.abs().amax(0) / FP8_MAX
        best = self._stored(smallest)
        if importance is None:
            return best, None
        least = self._error(columns, best, importance)
        for step in range(1, _FP8_STEPS):
            scale = self._stored(smallest * 2 ** (step / _FP8_STEPS))
            error = self._error(columns, scale, importance)
            best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
        return best, None

    def _error(self, columns: torch.Tensor, scale: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        return importance @ self.round(columns, (scale, None)).sub_(columns).square_()  # [N]

    def _stored(self, scale: torch.Tensor) -> torch.Tensor:
        scale = scale.to(self.dtype).float()
        return torch.where(scale == 0, torch.full_like(scale, torch.finfo(self.dtype).eps), scale)

    def round(self, columns: torch.Tensor, scales: Scales) -> torch.Tensor:
        """Return columns rounded to the grid."""
        values = (columns / scales[0]).clamp_(-FP8_MAX, FP8_MAX)
        return values.to(torch.float8_e4m3fn).float().mul_(scales[0])


def to_fp8(inputs: torch.Tensor) -> torch.Tensor:
    """Return what flows into a linear rounded to float8 E4M3, with each token's largest entry the largest of float8."""
    scale = inputs.abs().amax(-1, keepdim=True).clamp(min=1e-12) / FP8_MAX
    return (inputs / scale).to(torch.float8_e4m3fn).float() * scale
