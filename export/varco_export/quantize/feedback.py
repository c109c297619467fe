"""GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded one after the other, and each error is passed on.

    H = 2 X^T X / n + damping,   U^T U = H^-1,   U upper triangular                (factorize)
    for each column c:  e = (w_c - round(w_c)) / U[c, c];  w_j -= e U[c, j] for all j > c

Columns come in one of two orders, which no reader sees:

- all by their activations, largest first, as in llm-compressor's `static`. Scales are chosen beforehand.
- groups by their activations, and columns within their group. With a search, a group's scale is then chosen when its
  first column comes up, for the columns as the errors before have left them.

Which is better is a question of the inputs: the second where all channels are of one size (behind a rotation), the
first where a few are far larger (in front of o and down). `best_factor` tries both on some rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from varco_export.quantize.grid import Grid, Scales

DAMPENING = 0.01  # of the Hessian's mean diagonal; llm-compressor's default
TRIED_ROWS = 256
_GATHERED_ROWS = 1024
BLOCK_COLUMNS = 128  # columns whose error is passed on together


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """What error feedback needs of a Hessian.

    Args:
        order: `[K]`, the columns in the order in which they are rounded.
        upper: `[K, K]`, the factor of the inverse, in that order.
        importance: `[K]`, the diagonal of the Hessian over its mean, in the columns' own order.
        is_dead: `[K]`, which columns no sample reached; their weights become zero.
        keeps_groups: Whether the order keeps groups of columns in runs.
        damping: What was added to the Hessian's diagonal.
    """

    order: torch.Tensor
    upper: torch.Tensor
    importance: torch.Tensor
    is_dead: torch.Tensor
    keeps_groups: bool
    damping: float

    def degrees(self) -> float:
        """Return the degrees of freedom of a least squares fit with the damped Hessian, at most K.

        A dead column, whose diagonal is 1, explains nothing.
        """
        of_all = len(self.order) - self.damping * float(self.upper.square().sum())
        return of_all - int(self.is_dead.sum()) / (1 + self.damping)


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """A rounded weight `[N, K]` with scales `[N, groups]`, and zero points `[N, groups]` or none."""

    weight: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None


def factorize(hessian: torch.Tensor, group_size: int | None) -> Factor | None:
    """Return the factor of a Hessian's inverse; None where it has none.

    One matrix is made and worked in, beside the Hessian.

    Args:
        hessian: `[K, K]` in fp32.
        group_size: Columns that are to stay in a run; None where any order will do.
    """
    diagonal = hessian.diagonal().clone()
    is_dead = diagonal == 0
    diagonal.masked_fill_(is_dead, 1.0)
    mean = diagonal.mean()
    importance = diagonal / mean
    order = _order(importance, group_size)
    work = torch.empty_like(hessian)
    for start in range(0, len(order), _GATHERED_ROWS):
        rows = order[start : start + _GATHERED_ROWS]
        work[start : start + len(rows)] = hessian[rows][:, order]
    work.diagonal().copy_(diagonal[order] + DAMPENING * mean)
    status = torch.empty((), dtype=torch.int32, device=work.device)
    torch.linalg.cholesky_ex(work, out=(work, status))
    if int(status) != 0:
        return None
    torch.cholesky_inverse(work, out=work)
    torch.linalg.cholesky_ex(work, upper=True, out=(work, status))
    if int(status) != 0:
        return None
    return Factor(order, work, importance, is_dead, group_size is not None, DAMPENING * float(mean))


def divide(matrix: torch.Tensor, factor: Factor) -> torch.Tensor:
    """Divide a matrix `[R, K]` in place by the Hessian that a factor is of, from the right.

    Returns:
        `[R]`, the products of its rows before and after.
    """
    products: list[torch.Tensor] = []
    for start in range(0, len(matrix), _GATHERED_ROWS):
        rows = matrix[start : start + _GATHERED_ROWS]
        before = rows[:, factor.order]
        after = (before @ factor.upper.T) @ factor.upper
        products.append((before * after).sum(1))
        rows[:, factor.order] = after
    return torch.cat(products)


def round_with_feedback(weight: torch.Tensor, grid: Grid, factor: Factor, search: bool) -> Rounded:
    """Round a weight column by column, each error passed on to the columns that follow.

    Args:
        weight: `[N, K]` in fp32.
        grid: What it is rounded to.
        factor: Of its inputs' Hessian. Where its order keeps the grid's groups together, a searched scale is chosen
            when the first column of its group comes up.
        search: Whether scales are searched, weighted with the Hessian's diagonal.
    """
    width = weight.shape[1]
    size = grid.group_size or width
    columns = weight.T[factor.order].masked_fill_(factor.is_dead[factor.order][:, None], 0)  # [K, N], a copy
    chosen: list[Scales | None] = [None] * -(-width // size)
    late = search and factor.keeps_groups
    if not late:
        own = weight.T.masked_fill(factor.is_dead[:, None], 0)
        for group in range(len(chosen)):
            some = slice(group * size, (group + 1) * size)
            chosen[group] = grid.scales(own[some], factor.importance[some] if search else None)
        del own
    groups = (factor.order // size).tolist()
    start = 0
    while start < width:
        end = _block_end(groups, start, together=late)
        block, upper = columns[start:end], factor.upper[start:end, start:end]
        errors = torch.empty_like(block)
        for c in range(end - start):
            group = groups[start + c]
            scales = chosen[group]
            if scales is None:
                num = min(size, width - group * size)  # the last group of a row may be short
                importance = factor.importance[factor.order[start + c : start + c + num]]
                scales = chosen[group] = grid.scales(block[c : c + num], importance)
            rounded = grid.round(block[c], scales)
            torch.div(block[c] - rounded, upper[c, c], out=errors[c])
            block[c] = rounded
            block[c + 1 :].addr_(upper[c, c + 1 :], errors[c], alpha=-1)
        columns[end:].addmm_(factor.upper[start:end, end:].T, errors, alpha=-1)
        start = end
    restored = torch.empty_like(columns)
    restored[factor.order] = columns
    return _joined(restored.T.contiguous(), [one for one in chosen if one is not None])


def best_factor(
    weight: torch.Tensor, grid: Grid, factors: Sequence[Factor], search: bool, hessian: torch.Tensor
) -> Factor:
    """Return the factor with which some rows of a weight, evenly spaced, have the least output error.

    Args:
        weight: `[N, K]` in fp32.
        grid: What it is rounded to.
        factors: Of one Hessian, in different orders.
        search: Whether scales are searched.
        hessian: The Hessian.
    """
    if len(factors) == 1:
        return factors[0]
    rows = weight[:: -(-len(weight) // TRIED_ROWS)]

    def error(factor: Factor) -> float:
        left = rows - round_with_feedback(rows, grid, factor, search).weight
        return float(((left @ hessian) * left).sum())

    return min(factors, key=error)


def round_to_nearest(weight: torch.Tensor, grid: Grid) -> Rounded:
    """Round a weight `[N, K]` to the nearest numbers, its scales being the extremes'."""
    columns = weight.T.contiguous()
    size = grid.group_size or len(columns)
    chosen: list[Scales] = []
    for start in range(0, len(columns), size):
        some = columns[start : start + size]
        chosen.append(grid.scales(some, None))
        columns[start : start + size] = grid.round(some, chosen[-1])
    return _joined(columns.T.contiguous(), chosen)


def _block_end(groups: list[int], start: int, together: bool) -> int:
    """Return where a block of columns ends that begins at `start`: behind 128 columns, or behind whole groups."""
    end = min(start + BLOCK_COLUMNS, len(groups))
    while together and end < len(groups) and groups[end] == groups[end - 1]:
        end += 1
    return end


def _order(importance: torch.Tensor, group_size: int | None) -> torch.Tensor:
    """Return the columns with the largest first; with a group size, of the groups and within each."""
    if group_size is None:
        return torch.argsort(importance, descending=True, stable=True)
    starts = range(0, len(importance), group_size)
    parts = [importance[start : start + group_size] for start in starts]
    means = torch.stack([part.mean() for part in parts])
    within = [
        torch.argsort(part, descending=True, stable=True) + start for start, part in zip(starts, parts, strict=True)
    ]
    return torch.cat([within[index] for index in torch.argsort(means, descending=True, stable=True).tolist()])


def _joined(weight: torch.Tensor, chosen: list[Scales]) -> Rounded:
    zeros = [zero for _, zero in chosen if zero is not None]
    zero_point = torch.stack(zeros, 1) if zeros else None
    return Rounded(weight, torch.stack([scale for scale, _ in chosen], 1), zero_point)
