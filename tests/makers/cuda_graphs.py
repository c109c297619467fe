"""Bundles for CUDA in a form that ONNX Runtime's CPU provider runs exactly: the same graphs, computing in fp32."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
from onnx import TensorProto, external_data_helper, helper

from tests.conftest import export_bundle
from varco_export.options import gpu_precisions
from varco_export.precision import Precision
from varco_runtime.bundle.manifest import FileFacts
from varco_runtime.bundle.opening import read_manifest, write_manifest

FP8_OPERATOR = "MatMulBlockQuantizedFp8Weight"


def export_in_fp32(checkpoint: Path, target: Path, **options: object) -> Path:
    """A bundle for CUDA whose networks compute in fp32, which no GPU's attention does but the CPU does exactly.

    FP8 products, which the CPU lacks, are spelled out: dequantised weights, and inputs rounded where the operator does.
    """
    with mock.patch("varco_export.options.gpu_precisions", _in_fp32):
        export_bundle(checkpoint, target, **{"device": "cuda", "max_context": 512, **options})
    spell_out_fp8(target)
    return target


def _in_fp32(*args: Any) -> tuple[Precision, Precision]:
    decoder, vision = gpu_precisions(*args)
    return widen(decoder), widen(vision)


def widen(precision: Precision) -> Precision:
    def wide(kind: str) -> str:
        return "fp32" if kind in ("fp16", "bf16") else kind

    return dataclasses.replace(precision, compute="fp32", weights=wide(precision.weights), head=wide(precision.head))


def spell_out_fp8(bundle: Path) -> None:
    """Replace every FP8 product of the decoder by operators that the CPU has."""
    model = onnx.load(bundle / "decoder.onnx", load_external_data=False)
    if not any(node.op_type == FP8_OPERATOR for node in model.graph.node):
        return
    external_data_helper.load_external_data_for_model(model, str(bundle))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        nodes += _spelled_out(node, tensors) if node.op_type == FP8_OPERATOR else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (bundle / "decoder.onnx.data").unlink()
    onnx.save(model, bundle / "decoder.onnx", save_as_external_data=True, location="decoder.onnx.data")
    manifest = read_manifest(bundle)
    changed = {name: _facts(bundle / name) for name in ("decoder.onnx", "decoder.onnx.data")}
    decoder = dataclasses.replace(manifest.decoder, precision="float8 spelled out")
    write_manifest(bundle, dataclasses.replace(manifest, files=manifest.files | changed, decoder=decoder))


def _spelled_out(node: onnx.NodeProto, tensors: dict[str, TensorProto]) -> list[onnx.NodeProto]:
    x, weight, scales, input_scale, bias = [*node.input, "", ""][:5]
    (y,) = node.output
    del tensors[scales].dims[1:]  # [N, 1], one block to a row, to [N]
    float_type = tensors[scales].data_type
    made = [helper.make_node("DequantizeLinear", [weight, scales], [f"{y}_w"], axis=0)]
    if input_scale:
        made += [
            helper.make_node("Div", [x, input_scale], [f"{y}_a"]),
            helper.make_node("Cast", [f"{y}_a"], [f"{y}_b"], to=TensorProto.FLOAT8E4M3FN, saturate=1),
            helper.make_node("Cast", [f"{y}_b"], [f"{y}_c"], to=float_type),
            helper.make_node("Mul", [f"{y}_c", input_scale], [f"{y}_x"]),
        ]
        x = f"{y}_x"
    product = f"{y}_p" if bias else y
    made.append(helper.make_node("FusedMatMul", [x, f"{y}_w"], [product], domain="com.microsoft", transB=1))
    return [*made, helper.make_node("Add", [product, bias], [y])] if bias else made


def _facts(path: Path) -> FileFacts:
    content = path.read_bytes()
    return FileFacts(len(content), hashlib.sha256(content).hexdigest())
