"""A few hundred numbers about a large matrix of features, by which two such matrices are compared."""

from __future__ import annotations

import numpy as np

from varco_runtime.dtypes import Array
from varco_runtime.picture.packing import PackingPlan

NUM_GROUPS, GROUP_SIZE = 3, 128
_SEED = 20241105


def digest(features: Array) -> Array:
    """Three groups of 128 numbers about a matrix `[rows, columns]`, fp32 `[3, 128]`, for comparison by `digest_error`.

    The mean row along random signs; the rest (each row less the mean row) along random signs of rows and columns; and
    single entries of the rest. Projections see an error anywhere; the mean is held apart because the few channels of
    large constant value that vision towers have would hide everything else.
    """
    features = np.asarray(features, np.float32)
    rows, columns = features.shape
    # RandomState's stream is frozen for all versions of numpy.
    random = np.random.RandomState(_SEED)
    across = random.randint(0, 2, (columns, GROUP_SIZE)).astype(np.float32) * 2 - 1
    along = random.randint(0, 2, (GROUP_SIZE, rows)).astype(np.float32) * 2 - 1
    picked = random.randint(0, rows, GROUP_SIZE), random.randint(0, columns, GROUP_SIZE)
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    rest = features - mean
    projections = np.einsum("kc,ck->k", along @ rest, across) / np.sqrt(rows * columns)
    return np.stack([mean @ across / np.sqrt(columns), projections, rest[picked]]).astype(np.float32)


def digest_error(got: Array, expected: Array) -> float:
    """The largest relative error, root mean square, of the groups."""
    errors = [_relative(one, other) for one, other in zip(got, expected, strict=True)]
    return float(np.max(errors))  # NaN stays; Python's max may lose it


def _relative(got: Array, expected: Array) -> float:
    difference = float(np.linalg.norm(np.float64(got) - expected))
    norm = float(np.linalg.norm(np.float64(expected)))
    return 0.0 if difference == 0 else difference / norm if norm else float("inf")


def newline_rows(tokens: Array, plan: PackingPlan) -> Array:
    """The image tokens `[n, D]` at the ends of the grid's rows."""
    rows: Array = np.asarray(tokens, np.float32)[plan.indices[:, 0] == plan.newline_row]
    return rows


def newline_digest(tokens: Array, plan: PackingPlan) -> Array:
    """The digest of the newlines' mean: they are one vector, so that there is no rest to speak of."""
    mean = newline_rows(tokens, plan).mean(axis=0, dtype=np.float64, keepdims=True)
    return digest(mean)
