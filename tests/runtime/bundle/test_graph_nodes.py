"""ONNX graphs read and altered byte by byte, against the package onnx."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.conftest import export_bundle
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime.bundle.graph_nodes import GATE_PRODUCT, epsilons, unrounded


@pytest.fixture(scope="module")
def fast(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that rounds inputs in every network."""
    target = tmp_path_factory.mktemp("fast") / "bundle"
    return export_bundle(tiny_checkpoint, target, decoder="int4", activations="int8", vision="int8")


@pytest.mark.parametrize("network", ["vision", "projector", "decoder"])
def test_only_what_rounds_is_replaced(fast: Path, network: str) -> None:
    before = (fast / f"{network}.onnx").read_bytes()
    after = unrounded(before)
    assert after is not None
    assert unrounded(after) is None
    old, new = (onnx.load_model_from_string(model).graph for model in (before, after))
    operators = {node.op_type for node in new.node}
    assert operators.isdisjoint({"QuantizeLinear", "MatMulIntegerToFloat"})
    levels = {entry.i for node in new.node for entry in node.attribute if entry.name == "accuracy_level"}
    assert levels <= {1}
    kept = {node.SerializeToString() for node in new.node}
    gone = [node for node in old.node if node.SerializeToString() not in kept]
    assert {node.op_type for node in gone} <= {"QuantizeLinear", "MatMulIntegerToFloat", "MatMulNBits"}
    assert [value.SerializeToString() for value in old.output] == [value.SerializeToString() for value in new.output]
    assert {one.name for one in new.initializer} - {one.name for one in old.initializer} == {
        *("unrounded.column", "unrounded.lowest", "unrounded.highest")
    }


def test_a_graph_that_rounds_nothing_is_left_alone(tiny_bundle: Path) -> None:
    for network in ("vision", "projector", "decoder"):
        assert unrounded((tiny_bundle / f"{network}.onnx").read_bytes()) is None


def test_epsilons_are_those_of_the_norms(tiny_bundle: Path) -> None:
    for network, expected in (("vision", {1e-6}), ("projector", set()), ("decoder", {1e-6})):
        assert epsilons((tiny_bundle / f"{network}.onnx").read_bytes()) == {float(np.float32(one)) for one in expected}


def test_the_product_of_gate_and_up_on_cuda_is_no_norm(tmp_path: Path) -> None:
    checkpoint = make_tiny(tmp_path / "checkpoint", TinyOptions(seed=1, intermediate_size=128))
    bundle = export_bundle(checkpoint, tmp_path / "bundle", device="cuda", decoder="fp16")
    model = (bundle / "decoder.onnx").read_bytes()
    assert GATE_PRODUCT in model
    assert epsilons(model) == {float(np.float32(1e-6))}


def test_the_epsilon_of_norms_inside_an_attention_is_seen(tmp_path: Path) -> None:
    checkpoint = make_tiny(tmp_path / "checkpoint", TinyOptions(seed=1, text="qwen3"))
    bundle = export_bundle(checkpoint, tmp_path / "bundle", device="cuda", decoder="fp16")
    model = onnx.load(bundle / "decoder.onnx", load_external_data=False)
    assert epsilons(model.SerializeToString()) == {float(np.float32(1e-6))}
    (epsilon,) = (entry for entry in _attention(model).attribute if entry.name == "qk_norm_epsilon")
    epsilon.f = 1e-5
    assert epsilons(model.SerializeToString()) == {float(np.float32(one)) for one in (1e-5, 1e-6)}


def _attention(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")


@pytest.mark.parametrize(
    "damage", [lambda model: model[:-1], lambda model: b"\xff" * 40, lambda model: b"\x3b" + model]
)
def test_bytes_that_are_no_model_are_refused(tiny_bundle: Path, damage: object) -> None:
    model = (tiny_bundle / "decoder.onnx").read_bytes()
    with pytest.raises(ValueError, match=r"bytes|number"):
        epsilons(damage(model))  # type: ignore[operator]
