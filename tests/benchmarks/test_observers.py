"""llm-compressor's rounding, as the benchmark calls it, is the one that this project's equals."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

if any(find_spec(name) is None for name in ("torch", "llmcompressor")):
    pytest.skip("the comparison needs llm-compressor, of the extra 'dev'", allow_module_level=True)

import torch

from benchmarks.observers import DEFAULT, OBSERVERS, round_as_llm_compressor, round_as_ours
from varco_export.quantize.grid import IntegerGrid
from varco_export.quantize.linear import Measured, output_error


def test_both_round_alike_with_scales_of_the_largest_entries_and_a_search_loses_less() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(600, 96, generator=generator) * torch.logspace(0, 1, 96)
    weight, hessian = torch.randn(40, 96, generator=generator), 2 * inputs.T @ inputs / 600
    grid = IntegerGrid(4, 32, True, torch.float32)
    theirs = {name: round_as_llm_compressor(weight, hessian, 32, *OBSERVERS[name]) for name in OBSERVERS}
    torch.testing.assert_close(round_as_ours(weight, grid, Measured.of(hessian, 32, False)), theirs[DEFAULT])
    errors = {name: output_error(weight, rounded, hessian) for name, rounded in theirs.items()}
    ours = output_error(weight, round_as_ours(weight, grid, Measured.of(hessian, 32, True)), hessian)
    assert errors["imatrix_mse"] < 0.97 * errors[DEFAULT]
    assert ours < 0.97 * errors[DEFAULT]
