"""The int8 tower on OpenVINO: its rows are scaled and not rounded, its weights are those of the bundle."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.conftest import export_bundle
from tests.makers.inputs import noise_picture
from varco_runtime import Varco
from varco_runtime.backends.openvino.row_product import RowProducts
from varco_runtime.backends.openvino.runtime_model import runtime_layers
from varco_runtime.backends.openvino.settings import OpenVinoSettings
from varco_runtime.bundle.opening import Bundle
from varco_runtime.dtypes import Array
from varco_runtime.errors import BundleError
from varco_runtime.picture.loading import load_picture
from varco_runtime.picture.tiles import normalize, tile


@pytest.fixture(scope="session")
def int8_tower(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("openvino-tower") / "int8", vision="int8")


def features(bundle: Path, provider: str, **options: Any) -> Array:
    varco = Varco.load(bundle, provider, threads=1, **options)
    settings = varco.bundle.manifest.image
    return np.asarray(varco.backend.encode(normalize(tile(load_picture(noise_picture()), settings), settings))).ravel()


def error(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_it_is_nearer_to_the_plain_tower_than_one_that_rounds_rows(int8_tower: Path, tiny_bundle: Path) -> None:
    plain = features(tiny_bundle, "cpu")
    rounded = features(int8_tower, "cpu")
    ours = features(int8_tower, "openvino", precision="fp32")
    assert 0 < error(ours, plain) < error(rounded, plain)
    assert error(ours, rounded) < 2 * error(rounded, plain), "it is another tower"


def test_its_weights_stay_int8(int8_tower: Path) -> None:
    bundle = Bundle.open(int8_tower)
    graph = onnx.load(bundle.path(bundle.manifest.vision.file)).graph
    products = sum(node.op_type == "MatMulIntegerToFloat" for node in graph.node)
    layers = runtime_layers(bundle, OpenVinoSettings(precision="fp32"), 1)
    found: collections.Counter[str] = collections.Counter()
    for layer in layers:
        if layer.network == "vision" and layer.operator == "FullyConnected":
            found[layer.precision] += layer.nodes
    assert found == {"i8": products}


@pytest.mark.parametrize("behind", ["relu", None])
def test_a_graph_with_something_else_behind_a_linear_is_refused(behind: str | None) -> None:
    from openvino import opset13 as ops

    rows = RowProducts()
    product = ops.matmul(ops.parameter([2, 3]), ops.constant(np.ones((3, 4), np.float32)), False, False)
    after = None if behind is None else ops.relu(product)
    rows._products.append(product)
    got = "nothing" if after is None else "Relu"
    with pytest.raises(BundleError, match=f"The graph has {got} behind a linear in int8, expected Reshape"):
        rows.leave_out_scales()
