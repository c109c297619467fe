"""Orthogonal matrices that spread every entry over all others, made of a seed and applied in factors.

    R = diag(signs) (F1 x F2 x ... )        x the Kronecker product; each F a Hadamard matrix over the root of its order

A width is an odd number times a power of two. Sylvester's construction gives the powers of two, Paley's two give order
4, 8, ... times the odd number (12, 20, 28, 36, ...; R. Paley, On orthogonal matrices, 1933). An odd number for which
they give none gets any orthogonal matrix of that order. Two or three small products take the place of one with a
`[width, width]` matrix, which at 5,120 would be 0.2 GB and 18 times the arithmetic. No torch is needed.
"""

from __future__ import annotations

import math

import numpy as np

from varco_runtime.dtypes import Array
from varco_runtime.errors import CheckpointError
from varco_runtime.system.memory import machine_memory

_LARGEST_FACTOR = 256


class Rotation:
    """An orthogonal matrix R `[width, width]`, applied to rows."""

    def __init__(self, width: int, seed: int) -> None:
        """Make the rotation.

        Args:
            width: Features that are turned together.
            seed: Another one makes another rotation; the same one makes the same on every machine.

        Raises:
            CheckpointError: The width needs a matrix for which there is no memory.
        """
        bits = np.random.PCG64([seed, width])  # whose raw stream never changes, unlike a Generator's
        self.width = width
        self._signs = np.where(bits.random_raw(width) >> np.uint64(63), 1.0, -1.0)
        self._factors = _factors(width, bits)

    def turn(self, rows: Array) -> Array:
        """Return x R for each run of `width` neighbors x of the last axis, in fp64.

        Args:
            rows: `[..., n * width]`, whatever n: one run for a residual stream, one per head for heads.
        """
        x = rows.reshape(-1, self.width) * self._signs
        for factor in self._factors:
            # The first of the remaining axes is multiplied and becomes the last; at the end all are where they were.
            parts = x.reshape(len(x), len(factor), -1).swapaxes(1, 2)
            x = (parts @ factor).reshape(len(x), self.width)
        return x.reshape(rows.shape)


def hadamard(order: int) -> Array | None:
    """Return a Hadamard matrix of ones and minus ones `[order, order]`, None where no construction here gives one."""
    if order & (order - 1) == 0:
        matrix = np.ones((1, 1))
        while len(matrix) < order:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        return matrix
    if order % 4 == 0 and _is_prime(order - 1):  # q = 3 (mod 4)
        return np.eye(order) + _conference(order - 1, -1)
    q = order // 2 - 1
    if order % 4 == 0 and q % 4 == 1 and _is_prime(q):
        signs, skew = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
        return np.kron(_conference(q, 1), signs) + np.kron(np.eye(q + 1), skew)
    return None


def _conference(q: int, border: int) -> Array:
    """Return the matrix `[q + 1, q + 1]` with zeros on its diagonal whose core says whether i - j is a square mod q."""
    character = np.full(q, -1.0)
    character[np.arange(1, q) ** 2 % q] = 1
    character[0] = 0
    index = np.arange(q)
    core = character[(index[:, None] - index) % q]
    return np.block([[np.zeros((1, 1)), np.ones((1, q))], [np.full((q, 1), float(border)), core]])


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _factors(width: int, bits: np.random.PCG64) -> list[Array]:
    """Return orthogonal matrices whose orders multiply to `width`."""
    power = width & -width
    odd = width // power
    factors: list[Array] = []
    if odd > 1:
        orders = [odd * 4 << shift for shift in range(4) if power % (4 << shift) == 0]
        found = next((matrix for order in orders if (matrix := hadamard(order)) is not None), None)
        found = _any_orthogonal(odd, bits) if found is None else found / math.sqrt(len(found))
        factors.append(found)
        power = width // len(found)
    while power > 1:
        order = min(power, _LARGEST_FACTOR)
        matrix = hadamard(order)
        assert matrix is not None, f"Bug: {order} is no power of two"
        factors.append(matrix / math.sqrt(order))
        power //= order
    return factors


def _any_orthogonal(order: int, bits: np.random.PCG64) -> Array:
    """Return an orthogonal matrix `[order, order]`: the Q of a random one."""
    needed, free = 4 * 8 * order * order, machine_memory()[1]
    if free is not None and needed > free:
        raise CheckpointError(
            f"A width of {order} times a power of two has no Hadamard matrix here, and a rotation of it needs "
            f"{needed / 1e9:.1f} GB, expected at most the {free / 1e9:.1f} GB that are free. Use --no-rotate."
        )
    uniform = (bits.random_raw(order * order) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1
    q, r = np.linalg.qr(uniform.reshape(order, order))
    rotation: Array = q * np.sign(np.diag(r))
    return rotation
