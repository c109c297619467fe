"""Linears that make up for the errors before them: least squares, half by half, and nearer to the original."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

if any(find_spec(name) is None for name in ("torch", "transformers", "compressed_tensors")):
    pytest.skip("quantising needs the extra 'quantize'", allow_module_level=True)

import torch

from tests.export.quantize.test_quantize import Quiet, contents, draw, options_for
from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.quantize import QuantizeOptions, compensated, quantize
from varco_export.quantize.feedback import DAMPENING, factorize
from varco_export.quantize.grid import to_fp8
from varco_export.quantize.halves import FIRST, HALVES, LAST, Halves
from varco_export.quantize.layer import Decoder
from varco_export.quantize.linear import Hessian, Measured
from varco_export.quantize.quantizer import _prepare
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime.errors import ExportError, UsageError

CPU = torch.device("cpu")
TINY = TinyOptions(seed=8, num_hidden_layers=2, num_vision_layers=1)
pytestmark = pytest.mark.usefixtures("single_threaded")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("compensated") / "tiny", TINY)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty-four texts, of which four are held out."""
    folder = tmp_path_factory.mktemp("texts")
    lines = [{"prompt": f"Question {n}?", "answer": f"It is {n * n}, not {n + 7}. " * (n % 5 + 3)} for n in range(64)]
    (folder / "calibration.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def stream(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_the_halves_of_a_layer_give_what_the_layer_gives(source: Path) -> None:
    checkpoint = Checkpoint.open(source)
    decoder = Decoder(checkpoint.config.text, CPU)
    layer = decoder.layer(checkpoint, 1)
    found = front = stream(40, checkpoint.config.text.hidden_size, 0)
    for half in HALVES:
        found = Halves(decoder, layer).run(half, found)
    (expected,) = decoder.run(layer, [front.numpy()])
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("is_fp8", [False, True])
def test_inputs_and_what_they_lack_explain_the_stream_behind(source: Path, half: str, is_fp8: bool) -> None:
    """A linear's inputs times its weight, in front of it or behind it, and the lack of a stream that equals ours."""
    checkpoint = Checkpoint.open(source)
    decoder = Decoder(checkpoint.config.text, CPU)
    halves = Halves(decoder, decoder.layer(checkpoint, 0), to_fp8 if is_fp8 else None)
    front = stream(30, checkpoint.config.text.hidden_size, 1)
    behind = halves.run(half, front)
    inputs, lack = halves.lack(FIRST[half], front, front)
    assert (lack.norm() > 0) == is_fp8  # the original's inputs are not rounded
    inputs, lack = halves.lack(LAST[half], front, behind + 1)
    torch.testing.assert_close(lack, torch.ones_like(behind), rtol=0, atol=1e-5)
    weight = halves.layer.get_submodule(LAST[half]).weight
    torch.testing.assert_close(front + inputs @ weight.T, behind, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_beside", [False, True])
def test_the_wanted_weight_is_the_answer_of_least_squares(is_beside: bool) -> None:
    """Damped, each row as much smaller as chance explains; weighted tokens like tokens that come as often."""
    width, rows, tokens = 48, 20, 400
    inputs, weight = stream(tokens, width, 0), stream(rows, width, 1)
    lack = 0.3 * stream(tokens, width, 2) + inputs @ (0.1 * stream(width, width, 3))
    lack = lack @ weight.T if is_beside else lack
    weights = 1 + (torch.arange(tokens) % 3 == 0).float()
    hessian = Hessian(torch.nn.Linear(width, 1))
    for some in torch.arange(tokens).split(100):
        hessian.add(inputs[some], lack[some], weights[some])
    given = hessian.lack()
    found = Measured.of(hessian.mean(), 16, True, given, is_beside).wanted(weight)

    often = torch.cat([torch.arange(tokens), torch.arange(0, tokens, 3)])
    x, d = inputs[often].double(), lack[often].double()
    normal = x.T @ x
    damped = normal + DAMPENING * normal.diagonal().mean() * torch.eye(width)
    shift = torch.linalg.solve(damped, x.T @ d).T
    explained, degrees = (shift * (d.T @ x)).sum(1), float(torch.linalg.solve(damped, normal).trace())
    noise = (d.square().sum(0) - explained) / (len(often) - degrees)
    shift *= (1 - degrees * noise / explained)[:, None]
    shift = shift if is_beside else weight.double() @ shift
    torch.testing.assert_close(found, weight + shift.float(), rtol=1e-4, atol=1e-4)


def explained(
    tokens: int, signal: float, noise: float, width: int = 64, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the size of the weights that inputs explain what is lacking by, over the size of the true ones: `[R]`."""
    inputs, weight = stream(tokens, width, 0), stream(100, width, 1)
    hessian = Hessian(torch.nn.Linear(width, 1))
    hessian.add(inputs, signal * inputs @ weight.T + noise * stream(tokens, 100, 2), weights)
    lack = hessian.lack()
    factor = factorize(hessian.mean(), None)
    assert lack is not None
    assert factor is not None
    return lack.explained(factor).norm(dim=1) / weight.norm(dim=1)


def test_what_inputs_explain_is_made_up_for_and_what_chance_explains_is_not() -> None:
    assert explained(400, 1, 0).min() > 0.97
    by_least_squares = 400**-0.5  # of noise alone
    assert explained(400, 0, 1).mean() < 0.1 * by_least_squares
    assert explained(400, 0.1, 1).mean() == pytest.approx(0.09, abs=0.01)
    assert explained(64, 0, 1).mean() < 0.05  # as many inputs as tokens
    assert explained(20, 0, 1).mean() < 0.01


def test_tokens_that_count_little_explain_no_more_than_they_count() -> None:
    """A tenth are words, the others a picture's, and count as much in all: 4,000 count as 800 at most."""
    weights = torch.where(torch.arange(4000) % 10 == 0, 1.0, 1 / 9)
    assert explained(4000, 0, 1, weights=weights).mean() < 0.1 * 800**-0.5
    assert explained(4000, 0.1, 1, weights=weights).mean() < explained(4000, 0.1, 1).mean()


def test_columns_that_no_sample_reached_explain_nothing() -> None:
    hessian = torch.diag(torch.cat([torch.full((40,), 3.0), torch.zeros(24)]))
    factor = factorize(hessian, None)
    assert factor is not None
    assert factor.degrees() == pytest.approx(40, rel=0.02)


@pytest.mark.parametrize("options", [{}, {"rotate": False, "lm_head": "int4"}])
def test_a_model_that_makes_up_for_its_errors_is_nearer_to_the_original(
    source: Path, texts: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    found = {}
    for compensate in (True, False):
        out = tmp_path / str(compensate)
        quantize(source, out, options_for(texts, compensate=compensate, **options), Quiet())
        report = json.loads((out / "quantization.json").read_text())
        assert report["compensated"] is compensate
        found[compensate] = report["kl_nats_per_token"]
    assert found[True] < 0.5 * found[False], found


@pytest.mark.parametrize(("stage", "call"), [("write_activations", 2), ("write_activations", 7), ("write_shard", 2)])
def test_a_compensated_run_that_fails_anywhere_in_a_layer_continues_to_the_same_bytes(
    source: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, call: int
) -> None:
    options = options_for(texts, compensate=True, max_samples=20)
    quantize(source, tmp_path / "expected", options, Quiet())
    real, calls = getattr(compensated, stage), 0

    def failing(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(compensated, stage, failing)
    with pytest.raises(ExportError, match=r"No space left on device.*run the same command again"):
        quantize(source, tmp_path / "out", options, Quiet())
    monkeypatch.undo()
    quantize(source, tmp_path / "out", options, Quiet())
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert not (tmp_path / ".out.varco-quantize").exists()


def test_the_tokens_of_pictures_together_count_for_no_more_than_those_of_texts(
    source: Path, texts: Path, tmp_path: Path
) -> None:
    for seed in range(2):
        draw(tmp_path / f"{seed}.png", seed)
    for folder, is_less in ((texts, False), (tmp_path, True)):
        run = _prepare(source, options_for(folder), Quiet())[1]
        weights, image = run.token_weights(), run.prompts.prompt.image_token_id
        is_text = [[id_ != image for id_ in sample.ids] for sample in run.samples]
        of_text = sum(float(one[some].sum()) for one, some in zip(weights, is_text, strict=True))
        total = sum(float(one.sum()) for one in weights)
        assert (total < sum(map(len, weights))) == is_less
        assert total == pytest.approx(2 * of_text if is_less else of_text)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (QuantizeOptions("gptq"), True),
        (QuantizeOptions("gptq", compensate=False), False),
        (QuantizeOptions("fp8"), False),
        (QuantizeOptions("fp8", compensate=True), True),
        (QuantizeOptions("none"), False),
        (QuantizeOptions("rtn"), False),
    ],
)
def test_gptq_compensates_by_default_and_what_measures_nothing_never_does(
    options: QuantizeOptions, expected: bool
) -> None:
    assert options.compensates == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (QuantizeOptions("none", compensate=True), "--method none measures nothing. Leave --compensate out."),
        (QuantizeOptions("rtn", compensate=False), "--method rtn measures nothing. Leave --no-compensate out."),
        (
            QuantizeOptions("fp8", max_samples=0, compensate=True),
            "--samples 0 measures nothing. Leave --compensate out.",
        ),
        (QuantizeOptions("rtn", max_samples=3), "--method rtn takes no samples, got --samples 3."),
        (QuantizeOptions("fp8", max_samples=20_000), "Expected 0 to 10000."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_means_nothing_without_samples_is_refused(
    options: QuantizeOptions, message: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        quantize(source, tmp_path / "out", options, Quiet())
