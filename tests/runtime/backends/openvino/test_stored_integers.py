"""Integers that a quantised checkpoint stores reach OpenVINO's constants unchanged."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.conftest import export_bundle
from tests.makers.gptq_packer import GptqPacking, pack_checkpoint
from varco_runtime.backends.openvino.attention import PagedAttention
from varco_runtime.backends.openvino.integer_product import IntegerProducts
from varco_runtime.bundle.opening import Bundle


def gptq(checkpoint: Path, out: Path) -> None:
    pack_checkpoint(checkpoint, out, GptqPacking(act_order=True))


def gptq8(checkpoint: Path, out: Path) -> None:
    pack_checkpoint(checkpoint, out, GptqPacking(bits=8, act_order=True))


def compressed(num_bits: int) -> Any:
    def pack(checkpoint: Path, out: Path) -> None:
        from tests.makers.compressed_packer import CompressedPacking, compress_checkpoint

        weights = {"num_bits": num_bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
        compress_checkpoint(checkpoint, out, CompressedPacking(weights))

    return pack


@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(gptq, id="gptq-4-act-order"),
        pytest.param(compressed(8), id="W8A16"),
        pytest.param(gptq8, id="gptq-8-act-order", marks=pytest.mark.full),
        pytest.param(compressed(4), id="W4A16", marks=pytest.mark.full),
    ],
)
def test_they_are_the_bundles_bit_by_bit(pack: Any, tiny_checkpoint: Path, tmp_path: Path, openvino: Any) -> None:
    """That they are the checkpoint's in the bundle is tested beside the exporter."""
    pack(tiny_checkpoint, tmp_path / "packed")
    bundle = Bundle.open(export_bundle(tmp_path / "packed", tmp_path / "bundle"))
    path = bundle.path(bundle.manifest.decoder.file)
    core, products = openvino.Core(), IntegerProducts()
    for translator in (PagedAttention(bundle.manifest.model), products):
        core.add_extension(translator.extension())
    found: collections.Counter[bytes] = collections.Counter()
    for op in core.read_model(path).get_ops():
        if op.get_type_name() == "Constant" and op.get_element_type().get_type_name() in ("u4", "u8"):
            found[np.asarray(op.data).tobytes()] += 1
    stored = [tensor for tensor in onnx.load(path).graph.initializer if ".weight_int" in tensor.name]
    assert len(stored) > 4
    for tensor in stored:
        assert found[tensor.raw_data], f"{tensor.name} did not reach OpenVINO as it is stored"
