"""The steps that decide: tokens and products, right and wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import products, tests_run
from benchmarks.gpu.products import FORMATS, LIMITS, check_products, write_product
from benchmarks.gpu.tests_run import FailedTestsError, run_tests
from benchmarks.gpu.tokens import MODEL, NumbersError, check_tokens, compare, round_weights
from tests.benchmarks.gpu.conftest import gathered
from tests.conftest import export_bundle
from tests.makers.exported_weights import ExportedDecoder
from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.tiny import make_tiny
from varco_runtime import Varco

WEIGHT = "language_model.layers.0.mlp.up_proj.weight"


def test_tokens_of_the_same_weights_are_equal(tmp_path: Path) -> None:
    found = gathered(check_tokens, tmp_path, "cpu", "int4")
    assert found["equal"] == {"steps": found["tokens"], "drafts": found["tokens"]}
    assert found["clear"] > 8
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_off_is_seen_and_its_rounding_is_not(tmp_path: Path) -> None:
    """The reference of FP8 holds the rounded weights: beside the exact ones the same logits would be wrong."""
    loaded = []
    for name, dtype in (("exact", ""), ("fp8", "fp8"), ("bf16", "bf16")):
        checkpoint = make_tiny(tmp_path / name, MODEL)
        if dtype:
            round_weights(checkpoint, dtype)
        loaded.append(Varco.load(export_bundle(checkpoint, tmp_path / f"{name}-bundle", max_context=512), threads=1))
    exact, fp8, bf16 = loaded
    with pytest.raises(NumbersError, match=r"^Logits are off by 0\.1\d* of the largest, expected less than 0\.015\.$"):
        gathered(compare, fp8, exact, 0.015)
    assert gathered(compare, bf16, exact, 0.08)["error"] > 0.005
    assert gathered(compare, fp8, fp8, 0.015)["error"] == 0


def test_a_checkpoint_is_rounded_as_the_export_rounds_it(tmp_path: Path) -> None:
    checkpoint = make_tiny(tmp_path / "checkpoint", MODEL)
    bundle = export_bundle(checkpoint, tmp_path / "bundle", device="cuda", decoder="fp8", max_context=512)
    round_weights(checkpoint, "fp8")
    tensors = ExportedDecoder(bundle).tensors
    name = next(
        name.removesuffix(".weight_fp8") for name in tensors if name.endswith("layers.0.mlp.up_proj.weight_fp8")
    )
    held = tensors[f"{name}.weight_fp8"].astype(np.float32) * tensors[f"{name}.scales"]
    assert np.array_equal(Checkpoint.open(checkpoint).tensor(WEIGHT).read(), held)


def test_a_wrong_token_is_seen_unless_the_call_is_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = make_tiny(tmp_path / "checkpoint", MODEL)
    bundle = export_bundle(checkpoint, tmp_path / "bundle", device="cuda", decoder="fp16", max_context=512)
    exact, other = (Varco.load(bundle, provider="cpu", threads=1) for _ in range(2))
    steps = other.backend.decode_greedy_steps  # type: ignore[attr-defined]

    def wrong(token_ids: Any, position: int) -> list[int]:
        return [(token + 1) % 200 for token in steps(token_ids, position)]

    monkeypatch.setattr(other.backend, "decode_greedy_steps", wrong)
    with pytest.raises(NumbersError, match=r"Token 1 of 32 differs from the CPU's, by steps, and is no close call"):
        gathered(compare, other, exact, 0.015)


@pytest.mark.parametrize(("weights", "compute"), FORMATS)
def test_weights_of_a_product_are_read_as_the_graph_holds_them(tmp_path: Path, weights: str, compute: str) -> None:
    write_product(tmp_path, weights, compute, 192, 1344)
    decoder = ExportedDecoder(tmp_path)
    if weights == "fp8":
        rows = decoder.tensors["product.weight_fp8"].astype(np.float64) * decoder.tensors["product.scales"]
    else:
        rows = decoder.rows("product").astype(np.float64)
    chosen = np.array([0, 7, 191])
    assert np.allclose(products._rows(tmp_path, chosen), rows[chosen], rtol=1e-3, atol=1e-6)
    if weights in ("int4", "fp8"):
        assert np.ptp(decoder.tensors["product.scales"].astype(np.float64)) > 0


def test_a_product_that_is_off_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = gathered(check_products, tmp_path, "tiny", "cpu", "int4", "fp16")
    assert max(error for shape in found["errors"].values() for error in shape.values()) < LIMITS["int", "fp16"]
    exact = products._rows
    monkeypatch.setattr(products, "_rows", lambda folder, chosen: exact(folder, chosen) * 1.01)
    with pytest.raises(
        NumbersError, match=r"^Products of int4 in fp16 are off by more than 0\.006: 1 x 640 x 640: 0\.0"
    ):
        gathered(check_products, tmp_path, "tiny", "cpu", "int4", "fp16")


def test_failures_of_pytest_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='no such kernel')\n"
        "def test_skipped(): pass\n"
    )
    monkeypatch.setitem(tests_run.SELECTED, "tiny", [str(test)])
    told: dict[tuple[str, ...], Any] = {}
    with pytest.raises(FailedTestsError, match=r"^1 of 3 tests failed, 1 passed"):
        run_tests("tiny", "cpu", told.__setitem__)
    assert told["failures", "test_bad"].startswith("assert 1 == 2")
    assert told["skipped",] == ["no such kernel"]
    test.write_text("import pytest\npytest.skip('no GPU', allow_module_level=True)\n")
    with pytest.raises(FailedTestsError, match=r"0 passed|status 5"):
        run_tests("tiny", "cpu", told.__setitem__)
