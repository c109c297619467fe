"""Error feedback, scale search and the grids: right beside a plain reference, and never worse than what is simpler."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if any(find_spec(name) is None for name in ("torch", "transformers", "compressed_tensors")):
    pytest.skip("quantising needs the extra 'quantize'", allow_module_level=True)

import torch

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.quantize import QuantizeOptions
from varco_export.quantize.feedback import DAMPENING, best_factor, factorize, round_to_nearest, round_with_feedback
from varco_export.quantize.grid import Fp8Grid, Grid, IntegerGrid
from varco_export.quantize.linear import Hessian, Measured, join_rows, make_grid, output_error, quantize_linear
from varco_export.quantize.scheme import make_scheme
from varco_export.quantize.weights import TORCH_DTYPES, read_weight
from varco_export.tiny import TinyOptions, make_tiny

FP32 = torch.float32
WIDTH, ROWS = 160, 48
pytestmark = pytest.mark.usefixtures("single_threaded")


@pytest.fixture(scope="module")
def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight `[N, K]`, inputs `[S, K]` with channels of very different size, and their Hessian."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, WIDTH, generator=generator) * 0.1
    inputs = torch.randn(600, 24, generator=generator) @ torch.randn(24, WIDTH, generator=generator)
    inputs = (inputs + torch.randn(600, WIDTH, generator=generator)) * torch.rand(WIDTH, generator=generator).exp() ** 2
    hessian = Hessian(torch.nn.Linear(WIDTH, 1))
    for some in inputs.split(150):
        hessian.add(some[None])
    return weight, inputs, hessian.mean()


def column_by_column(weight: torch.Tensor, hessian: torch.Tensor, grid: IntegerGrid, search: bool) -> torch.Tensor:
    """GPTQ as in the paper, in fp64: after each column the Hessian of the columns that remain is inverted anew."""
    h, left = hessian.double(), weight.double().clone()
    importance = hessian.diagonal() / hessian.diagonal().mean()
    size, width = grid.group_size, weight.shape[1]
    groups = [list(range(start, min(start + size, width))) for start in range(0, width, size)]
    if search:
        order = []
        for group in sorted(groups, key=lambda group: -float(importance[group].mean())):
            order += sorted(group, key=lambda column: -float(importance[column]))
    else:
        order = sorted(range(width), key=lambda column: -float(importance[column]))
    h = h + DAMPENING * h.diagonal().mean() * torch.eye(width)
    result = torch.zeros_like(left)
    scales: dict[int, Any] = {}
    if not search:
        scales = {n: grid.scales(weight.T[group].contiguous(), None) for n, group in enumerate(groups)}
    for step, column in enumerate(order):
        number = column // size
        if number not in scales:
            group = order[step : step + len(groups[number])]
            scales[number] = grid.scales(left.T[group].float(), importance[group])
        rest = order[step:]
        inverse = torch.linalg.inv(h[rest][:, rest])
        result[:, column] = grid.round(left[:, column].float()[None], scales[number])[0].double()
        error = (left[:, column] - result[:, column]) / inverse[0, 0]
        left[:, rest] -= error[:, None] * inverse[0][None]
    return result.float()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("size", [32, 64])  # 160 columns: the last group of 64 is short
def test_error_feedback_equals_a_plain_column_by_column_reference(
    problem: Any, size: int, search: bool, symmetric: bool
) -> None:
    """A weight that lies halfway may go the other way, and the next ones of its row make up for it."""
    weight, _, hessian = problem
    grid = IntegerGrid(4, size, symmetric, FP32)
    factor = factorize(hessian, size if search else None)
    assert factor is not None
    ours = round_with_feedback(weight, grid, factor, search).weight
    reference = column_by_column(weight, hessian, grid, search)
    assert float(((ours - reference).abs() > 1e-5).float().mean()) < 0.01
    assert output_error(weight, ours, hessian) == pytest.approx(output_error(weight, reference, hessian), rel=0.01)


@pytest.mark.parametrize(
    ("grid", "part"),
    [(IntegerGrid(4, 32, True, FP32), 0.5), (IntegerGrid(8, 32, True, FP32), 0.5), (Fp8Grid(FP32), 0.6)],
)
def test_feedback_disturbs_a_linears_outputs_less_than_rounding(problem: Any, grid: Grid, part: float) -> None:
    weight, inputs, hessian = problem
    factor = factorize(hessian, None)
    assert factor is not None
    ours, nearest = round_with_feedback(weight, grid, factor, False).weight, round_to_nearest(weight, grid).weight
    assert output_error(weight, ours, hessian) < part * output_error(weight, nearest, hessian)
    measured = float(((inputs @ (weight - ours).T) ** 2).sum() / ((inputs @ weight.T) ** 2).sum())
    assert output_error(weight, ours, hessian) == pytest.approx(measured, rel=1e-3)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("is_flat", [True, False], ids=["channels of one size", "a few large channels"])
def test_searched_scales_disturb_outputs_less_than_those_of_the_extremes(is_flat: bool, size: int) -> None:
    """Whichever order of columns the inputs call for: the better one is found."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(96, 256, generator=generator) ** 3
    inputs = torch.randn(1000, 256, generator=generator) @ torch.randn(256, 256, generator=generator)
    if not is_flat:
        inputs *= torch.rand(256, generator=generator).exp() ** 3
    hessian = inputs.T @ inputs
    grid, errors, by_order = IntegerGrid(4, size, True, FP32), list[float](), list[float]()
    for search in (True, False):
        measured = Measured.of(hessian, size, search)
        factor = best_factor(weight, grid, measured.factors, search, hessian)
        errors.append(output_error(weight, round_with_feedback(weight, grid, factor, search).weight, hessian))
        if search:
            assert factor.keeps_groups == is_flat
            rounded = [round_with_feedback(weight, grid, one, search).weight for one in measured.factors]
            by_order = [output_error(weight, one, hessian) for one in rounded]
    assert errors[0] == min(by_order)
    assert errors[0] < 0.95 * errors[1], errors


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_searched_scale_is_never_worse_weighted_than_the_extremes(
    dtype: torch.dtype, bits: int, symmetric: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    columns = torch.randn(32, 500, generator=generator) ** 3
    columns[:, :4] = torch.tensor([0.0, 1e-6, 1.0, -2.0])
    importance = torch.rand(32, generator=generator) ** 4
    grid = IntegerGrid(bits, 32, symmetric, dtype)
    errors = [
        importance @ (grid.round(columns, grid.scales(columns, weights)) - columns) ** 2
        for weights in (importance, None)
    ]
    assert bool((errors[0] <= errors[1]).all())
    if bits == 4:
        assert float(errors[0].sum()) < 0.95 * float(errors[1].sum())


def test_columns_that_no_sample_reached_become_zero_and_nothing_else_suffers() -> None:
    hessian = torch.eye(64)
    hessian[3, 3] = 0
    factor = factorize(hessian, 32)
    assert factor is not None
    weight = torch.ones(4, 64)
    rounded = round_with_feedback(weight, IntegerGrid(4, 32, True, FP32), factor, True).weight
    assert bool((rounded[:, 3] == 0).all())
    assert torch.allclose(rounded.sum(1), torch.full((4,), 63.0), atol=0.2 * 63)


def test_a_hessian_without_an_inverse_has_no_factor() -> None:
    assert factorize(torch.full((32, 32), float("nan")), 32) is None
    negative = torch.eye(32)
    negative[0, 1] = negative[1, 0] = 5.0
    assert factorize(negative, None) is None


def test_rows_of_a_head_are_joined_to_what_the_whole_gives(problem: Any) -> None:
    weight, _, hessian = problem
    scheme = make_scheme(QuantizeOptions("gptq", group_size=32, symmetric=False))
    measured = Measured.of(hessian, 32, True).decided(weight, make_grid(scheme, FP32))
    rows = torch.cat([weight, weight * 0.7])[:64]
    whole = quantize_linear(rows, FP32, scheme, measured).tensors
    parts = [quantize_linear(some, FP32, scheme, measured).tensors for some in rows.split(32)]
    joined = join_rows(parts)
    assert joined.keys() == whole.keys()
    assert all(torch.equal(joined[name], whole[name]) for name in whole)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("method", ["gptq", "rtn", "fp8"])
def test_what_runs_on_is_what_a_reader_of_the_saved_tensors_gets(tmp_path: Path, dtype: Any, method: str) -> None:
    from compressed_tensors.compressors import BaseCompressor

    source = make_tiny(tmp_path / "tiny", TinyOptions(dtype=dtype, num_hidden_layers=1))
    options = QuantizeOptions(method, group_size=None if method == "fp8" else 32)
    scheme = make_scheme(options)
    weight = read_weight(Checkpoint.open(source), "language_model.layers.0.mlp.up_proj.weight")
    measured = Measured.of(torch.eye(weight.shape[1]), 32, True) if method == "gptq" else None
    found = quantize_linear(weight, TORCH_DTYPES[dtype], scheme, measured)
    assert found.tensors["weight_scale"].dtype == TORCH_DTYPES[dtype]
    widened = found.tensors | {"weight_scale": found.tensors["weight_scale"].float()}
    read = BaseCompressor.get_value_from_registry(options.format).decompress(widened, scheme)["weight"]
    assert torch.equal(read.float(), found.weight)
    step = weight.abs() / 8 if method == "fp8" else found.tensors["weight_scale"].float().repeat_interleave(32, 1)
    far = (found.weight - weight).abs() > 0.54 * step + 1e-3 * weight.abs().max()
    assert not bool(far.any()) or method == "gptq"
