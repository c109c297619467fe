"""One linear: its Hessian, its rounded weight, and the tensors that stand for it on disk.

Scales are rounded to the dtype they are saved in before anything is rounded with them. `Quantized.weight` is what a
reader of the checkpoint computes from the saved tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from varco_export.quantize.feedback import (
    Factor,
    best_factor,
    divide,
    factorize,
    round_to_nearest,
    round_with_feedback,
)
from varco_export.quantize.grid import Fp8Grid, Grid, IntegerGrid
from varco_export.quantize.scheme import silence

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme


@dataclass(frozen=True, slots=True, eq=False)
class Lack:
    """What inputs, or what comes of them, lack beside the original's.

    Args:
        products: `[R, K]`, D^T X of what is lacking and the inputs.
        energy: `[R]`, the squares of what is lacking, in the same unit.
        num_tokens: The sum of what tokens count.
    """

    products: torch.Tensor
    energy: torch.Tensor
    num_tokens: float

    def explained(self, factor: Factor) -> torch.Tensor:
        """Return the weights `[R, K]` that explain it by the inputs, as far as chance does not; `products` are used up.

        Noise of T tokens is explained by inputs of n degrees of freedom as to n / T. What that comes to is told from
        what they leave unexplained, and each row is made smaller by as much.
        """
        by_inputs, degrees = divide(self.products, factor), factor.degrees()
        by_chance = (self.energy - by_inputs).clamp_(min=0) * (degrees / max(self.num_tokens - degrees, 1e-9))
        share = (1 - by_chance / by_inputs.clamp(min=1e-30)).clamp_(min=0)
        return self.products.mul_(share[:, None])


class Hessian:
    """2 X^T X of what flowed into a linear, averaged over samples: `[K, K]` in fp32; and what it lacks, D^T X."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        width, device = linear.in_features, linear.weight.device
        self._sum = torch.zeros(width, width, dtype=torch.float32, device=device)
        self._lack: torch.Tensor | None = None
        self._lack_energy: torch.Tensor | None = None
        self._num_samples = 0
        self._num_tokens = 0.0
        """The sum of what tokens count. Kish's effective number, which is higher where some count little, is for noise
        that is independent; a picture's tokens are alike, and KL on pictures was higher with it (0.0029 for 0.0024)."""

    def add(self, inputs: torch.Tensor, lack: torch.Tensor | None = None, weights: torch.Tensor | None = None) -> None:
        """Count in one sample.

        Args:
            inputs: `[1, S, K]`.
            lack: `[S, K]` or `[S, N]`, what the inputs, or what comes of them, lack beside the original's.
            weights: `[S]`, what each token counts for; one where it is left out.
        """
        rows = inputs.reshape(-1, inputs.shape[-1])
        weighted = rows if weights is None or bool((weights == 1).all()) else rows * weights[:, None]
        self._sum.addmm_(weighted.T, rows)
        self._num_samples += 1
        self._num_tokens += len(rows) if weights is None else float(weights.sum())
        if lack is not None:
            if self._lack is None or self._lack_energy is None:
                self._lack = torch.zeros(lack.shape[1], rows.shape[1], dtype=torch.float32, device=rows.device)
                self._lack_energy = torch.zeros(lack.shape[1], dtype=torch.float32, device=rows.device)
            self._lack.addmm_(lack.T, weighted)
            squares = lack.square() if weights is None else lack.square().mul_(weights[:, None])
            self._lack_energy += squares.sum(0)

    def mean(self) -> torch.Tensor:
        """Return the matrix; this object is empty afterwards."""
        return self._sum.mul_(2 / max(self._num_samples, 1))

    def lack(self) -> Lack | None:
        """Return what is lacking, in the unit of `mean`; None where it is not known."""
        if self._lack is None or self._lack_energy is None:
            return None
        unit = 2 / max(self._num_samples, 1)
        return Lack(self._lack.mul_(unit), self._lack_energy.mul_(unit), self._num_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What is known of a linear's inputs.

    Args:
        hessian: `[K, K]`.
        factors: Of its inverse, by the orders of columns that are worth trying; none where it has no inverse.
        search: Whether scales are searched.
        shift: What makes up for earlier errors: `[K, K]` behind the weight, or `[N, K]` beside it; None for nothing.
        is_beside: Whether it is the second.
    """

    hessian: torch.Tensor
    factors: tuple[Factor, ...]
    search: bool
    shift: torch.Tensor | None = None
    is_beside: bool = False

    @classmethod
    def of(
        cls,
        hessian: torch.Tensor,
        group_size: int | None,
        search: bool,
        lack: Lack | None = None,
        is_beside: bool = False,
    ) -> Measured:
        """Factorize a Hessian.

        Args:
            hessian: `[K, K]`.
            group_size: Columns that share a scale; None where a whole row does.
            search: Whether scales are searched.
            lack: What the inputs or the outputs lack; it is used up.
            is_beside: Whether it is the outputs'.
        """
        orders = (None, group_size) if search and group_size is not None else (None,)
        factors: list[Factor] = []
        shift = None
        for order in orders:
            factor = factorize(hessian, order)
            if factor is not None:
                factors.append(factor)
                if lack is not None and shift is None:
                    shift = lack.explained(factor)
        return cls(hessian, tuple(factors), search, shift, is_beside)

    def wanted(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight that gives, of these inputs, most nearly what the original gave.

        A shift that is beside a weight is used up.
        """
        if self.shift is None:
            return weight
        return self.shift.add_(weight) if self.is_beside else torch.addmm(weight, weight, self.shift)

    def decided(self, weight: torch.Tensor, grid: Grid) -> Measured:
        """Return this with one factor, the better one for a weight `[N, K]`; the other's memory is then free."""
        if len(self.factors) < 2:
            return self
        return replace(self, factors=(best_factor(weight, grid, self.factors, self.search, self.hessian),))


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A quantized linear. `tensors` are saved, by last name."""

    weight: torch.Tensor
    tensors: dict[str, torch.Tensor]


def make_grid(scheme: QuantizationScheme, dtype: torch.dtype) -> Grid:
    """Return the numbers that a scheme of compressed-tensors rounds weights to, with scales stored as `dtype`."""
    arguments = scheme.weights
    assert arguments is not None, "Bug: a scheme without weights"
    if arguments.type == "float":
        return Fp8Grid(dtype)
    assert arguments.group_size is not None, "Bug: integers without groups"
    return IntegerGrid(arguments.num_bits, arguments.group_size, arguments.symmetric, dtype)


def quantize_linear(
    weight: torch.Tensor, dtype: torch.dtype, scheme: QuantizationScheme, measured: Measured | None
) -> Quantized:
    """Round a weight by GPTQ, or where nothing is measured, or to no avail, to the nearest.

    Args:
        weight: `[N, K]` in fp32, or some of its rows.
        dtype: The type that its scales are saved in.
        scheme: What quantizes it, in the words of compressed-tensors.
        measured: What flows into the linear, with the factor that is decided for.
    """
    grid = make_grid(scheme, dtype)
    if measured is None or not measured.factors:
        found = round_to_nearest(weight, grid)
    else:
        found = round_with_feedback(weight, grid, measured.factors[0], measured.search)
    return _packed(found.weight, found.scale, found.zero_point, dtype, scheme)


def join_rows(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the tensors of a linear from those of its rows, 32 rows and more at a time."""
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != "weight_shape"}
    if "weight_shape" in parts[0]:
        shape = parts[0]["weight_shape"].clone()
        shape[0] = sum(int(part["weight_shape"][0]) for part in parts)
        joined["weight_shape"] = shape
    return joined


def output_error(weight: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> float:
    """Return the squared error of the linear's outputs over the outputs' own square, on the Hessian's samples."""
    error, whole = output_energies(weight, quantized, hessian)
    return error / max(whole, 1e-30)


def output_energies(weight: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> tuple[float, float]:
    """Return the squared error of the outputs of some rows, and the outputs' own square, in the same unit."""

    def energy(matrix: torch.Tensor) -> float:
        return float(((matrix @ hessian) * matrix).sum())

    return energy(weight - quantized), energy(weight)


def _packed(
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    dtype: torch.dtype,
    scheme: QuantizationScheme,
) -> Quantized:
    silence()
    from compressed_tensors.compressors import BaseCompressor

    assert scheme.format is not None, "Bug: a scheme without a format"
    compressor = BaseCompressor.get_value_from_registry(scheme.format.value)
    state = {"weight": weight, "weight_scale": scale}
    if zero_point is not None:
        state["weight_zero_point"] = zero_point.to(torch.int8)
    tensors = compressor.compress(state, scheme)
    saved = compressor.decompress(tensors, scheme)["weight"]
    tensors["weight_scale"] = tensors["weight_scale"].to(dtype)
    return Quantized(saved.float(), {name: tensor.cpu() for name, tensor in tensors.items()})
