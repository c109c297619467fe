"""Bundles for CUDA in a form that ONNX Runtime's CPU provider runs exactly: the same graphs, computing in fp32."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper

from tests.conftest import export_bundle
from varco_export.options import gpu_precisions
from varco_export.precision import Precision
from varco_runtime.bundle.manifest import FileFacts
from varco_runtime.bundle.opening import read_manifest, write_manifest

FP8_OPERATOR = "MatMulBlockQuantizedFp8Weight"
TABLES, FIRST_NORM = 7, 14
"""Inputs of GroupQueryAttention: the first rotary table, and the weight of the queries' norm before the keys'."""


def export_in_fp32(checkpoint: Path, target: Path, **options: object) -> Path:
    """A bundle for CUDA whose networks compute in fp32, which no GPU's attention does but the CPU does exactly.

    What the CPU lacks is spelled out: FP8 products as dequantised weights, with inputs rounded where the operator does,
    and norms of heads inside the attention as nodes in front of it.
    """
    with mock.patch("varco_export.options.gpu_precisions", _in_fp32):
        export_bundle(checkpoint, target, **{"device": "cuda", "max_context": 512, **options})
    spell_out(target)
    return target


def _in_fp32(*args: Any) -> tuple[Precision, Precision]:
    decoder, vision = gpu_precisions(*args)
    return widen(decoder), widen(vision)


def widen(precision: Precision) -> Precision:
    def wide(kind: str) -> str:
        return "fp32" if kind in ("fp16", "bf16") else kind

    return dataclasses.replace(precision, compute="fp32", weights=wide(precision.weights), head=wide(precision.head))


def spell_out(bundle: Path) -> None:
    """Replace every FP8 product and every norm of heads of the decoder by operators that the CPU has."""
    model = onnx.load(bundle / "decoder.onnx", load_external_data=False)
    if not any(node.op_type == FP8_OPERATOR or _has_norms(node) for node in model.graph.node):
        return
    external_data_helper.load_external_data_for_model(model, str(bundle))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type == FP8_OPERATOR:
            nodes += _spelled_out(node, tensors)
        elif _has_norms(node):
            nodes += _norms_in_front(node, tensors["cos_cache"].dims[1] * 2)
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (bundle / "decoder.onnx.data").unlink()
    onnx.save(model, bundle / "decoder.onnx", save_as_external_data=True, location="decoder.onnx.data")
    manifest = read_manifest(bundle)
    changed = {name: _facts(bundle / name) for name in ("decoder.onnx", "decoder.onnx.data")}
    decoder = dataclasses.replace(manifest.decoder, precision="spelled out")
    write_manifest(bundle, dataclasses.replace(manifest, files=manifest.files | changed, decoder=decoder))


def _has_norms(node: onnx.NodeProto) -> bool:
    return node.op_type == "GroupQueryAttention" and len(node.input) > FIRST_NORM


def _norms_in_front(attention: onnx.NodeProto, head_dim: int) -> list[onnx.NodeProto]:
    """Nodes for an attention that normalizes heads itself, by what its documentation says of these inputs."""
    qkv, weights = attention.input[0], attention.input[FIRST_NORM:]
    values = {entry.name: onnx.helper.get_attribute_value(entry) for entry in attention.attribute}
    heads = (values["num_heads"], values["kv_num_heads"], values["kv_num_heads"])
    parts = [f"{qkv}.{part}" for part in "qkv"]
    sizes = onnx.numpy_helper.from_array(np.array([head_dim * number for number in heads], np.int64))
    made = [
        helper.make_node("Constant", [], [f"{qkv}.sizes"], value=sizes),
        helper.make_node("Split", [qkv, f"{qkv}.sizes"], parts, axis=-1),
    ]
    for part, weight in zip(parts[:2], weights, strict=True):
        cut, joined = (
            onnx.numpy_helper.from_array(np.array(shape, np.int64)) for shape in ([0, 0, -1, head_dim], [0, 0, -1])
        )
        norm = {"axis": -1, "epsilon": values["qk_norm_epsilon"]}
        made += [
            helper.make_node("Constant", [], [f"{part}.cut"], value=cut),
            helper.make_node("Reshape", [part, f"{part}.cut"], [f"{part}.heads"]),
            helper.make_node("RMSNormalization", [f"{part}.heads", weight], [f"{part}.normed"], **norm),
            helper.make_node("Constant", [], [f"{part}.joined"], value=joined),
            helper.make_node("Reshape", [f"{part}.normed", f"{part}.joined"], [f"{part}.out"]),
        ]
    others = {name: value for name, value in values.items() if name != "qk_norm_epsilon"}
    inputs = [f"{parts[0]}.out", f"{parts[1]}.out", parts[2], *attention.input[3 : TABLES + 2]]
    made.append(helper.make_node(attention.op_type, inputs, attention.output, domain=attention.domain, **others))
    return made


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
