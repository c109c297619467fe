"""A row of a batch beside the same row alone, on the processor that is there: operators, decoder graphs, a backend.

The table that `docs/exactness.md` refers to. Operators are run with the attributes that the exporter writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tests.conftest import export_bundle
from tests.makers.inputs import text_inputs
from varco_export.dialects.linear import quantize_rows
from varco_export.quantized.integers import pack
from varco_runtime import Varco
from varco_runtime.backend import BatchingBackend

HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 4, 2, 16, 96
LENGTHS = (1, 90, 2, 33, 17, 64, 5, 48)
"""Positions behind which each row puts its token."""


def session(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any]) -> Any:
    graph = helper.make_graph(nodes, "rows", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def value(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture(scope="module")
def attention() -> Any:
    """GroupQueryAttention as the decoder has it, rows and context of any length."""
    width = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    cache = ("batch", KV_HEADS, "context", HEAD_DIM)
    angles = np.arange(CONTEXT)[:, None] / 10.0 ** np.arange(HEAD_DIM // 2)
    tables = [
        onnx.numpy_helper.from_array(table.astype(np.float32), name)
        for name, table in (("cos", np.cos(angles)), ("sin", np.sin(angles)))
    ]
    node = helper.make_node(
        "GroupQueryAttention",
        ["qkv", "", "", "past_key", "past_value", "seqlens_k", "total", "cos", "sin"],
        ["y", "key", "value"],
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
        do_rotary=1,
    )
    inputs = [value("qkv", TensorProto.FLOAT, "batch", "sequence", width)]
    inputs += [value(name, TensorProto.FLOAT, *cache) for name in ("past_key", "past_value")]
    inputs += [value("seqlens_k", TensorProto.INT32, "batch"), value("total", TensorProto.INT32)]
    outputs = [value("y", TensorProto.FLOAT, "batch", "sequence", HEADS * HEAD_DIM)]
    outputs += [value(name, TensorProto.FLOAT, *cache) for name in ("key", "value")]
    return session([node], inputs, outputs, tables)


@pytest.mark.parametrize("outliers", [False, True], ids=["even", "outlier channels"])
def test_attention_gives_a_row_the_bits_that_it_has_alone(attention: Any, outliers: bool) -> None:
    rng = np.random.default_rng(0)
    batch = len(LENGTHS)
    qkv = rng.standard_normal((batch, 1, (HEADS + 2 * KV_HEADS) * HEAD_DIM)).astype(np.float32)
    past = rng.standard_normal((2, batch, KV_HEADS, CONTEXT, HEAD_DIM)).astype(np.float32)
    if outliers:
        qkv[..., ::7] *= 100
        past[..., ::5] *= 100

    def run(rows: slice) -> list[np.ndarray]:
        lengths = np.array(LENGTHS[rows], np.int32)
        feeds = {"qkv": qkv[rows], "past_key": past[0, rows], "past_value": past[1, rows], "seqlens_k": lengths}
        return attention.run(None, {**feeds, "total": np.array(lengths.max() + 1, np.int32)})

    together = run(slice(batch))
    for row, length in enumerate(LENGTHS):
        alone = run(slice(row, row + 1))
        assert np.array_equal(together[0][row], alone[0][0]), f"row {row} of length {length}"
        for kind in (1, 2):
            assert np.array_equal(together[kind][row, :, : length + 1], alone[kind][0, :, : length + 1])


@pytest.mark.parametrize("outliers", [False, True], ids=["even", "outlier channels"])
@pytest.mark.parametrize(
    ("bits", "block_size", "level", "limit"),
    [(4, 32, 4, 0.0), (8, 32, 4, 0.0), (4, 128, 4, 1e-5), (4, 32, 1, 1e-5), (4, 128, 1, 1e-5)],
    ids=["int4, int8 activations", "int8, int8 activations", "blocks of 128", "float activations", "float, 128"],
)
def test_a_product_gives_a_row_the_bits_that_it_has_alone_or_nearly(
    bits: int, block_size: int, level: int, limit: float, outliers: bool
) -> None:
    """0: bit for bit, for 1 to 16 rows; else the largest relative difference."""
    k, n = 256, 192
    rng = np.random.default_rng(1)
    values, scales = quantize_rows(rng.standard_normal((n, k)).astype(np.float32), bits, block_size)
    weights = [
        onnx.numpy_helper.from_array(pack(values, bits).reshape(n, k // block_size, -1), "w"),
        onnx.numpy_helper.from_array(scales.astype(np.float32), "s"),
    ]
    attributes = {"K": k, "N": n, "bits": bits, "block_size": block_size, "accuracy_level": level}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **attributes)
    ports = (value("x", TensorProto.FLOAT, "batch", 1, k), value("y", TensorProto.FLOAT, "batch", 1, n))
    product = session([node], [ports[0]], [ports[1]], weights)
    x = rng.standard_normal((16, 1, k)).astype(np.float32)
    if outliers:
        x[..., ::9] *= 100
    alone = np.concatenate([product.run(None, {"x": row[None]})[0] for row in x])
    for num_rows in range(2, 17):
        together = product.run(None, {"x": x[:num_rows]})[0]
        difference = np.abs(together - alone[:num_rows]).max() / np.abs(alone).max()
        assert difference <= limit, f"{num_rows} rows"


FORMATS = {
    "fp32": ({}, 2e-5),
    "int4": ({"decoder": "int4"}, 2e-5),
    "int4, int8 activations": ({"decoder": "int4", "activations": "int8", "lm_head": "int4"}, 0.0),
    "int8, int8 activations": ({"decoder": "int8", "activations": "int8", "lm_head": "int8"}, 0.0),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_step_of_several_slots_gives_each_what_it_gives_alone(
    name: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Slots of different lengths, one of them idle; the second round finds what the first one wrote."""
    options, limit = FORMATS[name]
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", vision="fp32", **options)
    varco = Varco.load(bundle, threads=1, slots=4, max_context=96)
    alone = Varco.load(bundle, threads=1, max_context=96)
    backend, lengths = varco.backend, (40, 7, 0, 63)
    assert isinstance(backend, BatchingBackend)
    prompts = [text_inputs(varco, length, seed) if length else None for seed, length in enumerate(lengths)]
    for slot, prompt in enumerate(prompts):
        if prompt is not None:
            backend.select_slot(slot)
            backend.prefill(prompt, 0)
    steps = [backend.decode_rows([5, 6, 0, 7], [length + at for length in lengths]).copy() for at in range(3)]
    for slot, prompt in enumerate(prompts):
        if prompt is not None:
            alone.backend.prefill(prompt, 0)
            for at, together in enumerate(steps):
                want = alone.backend.decode_step((5, 6, 0, 7)[slot], lengths[slot] + at)
                assert np.abs(together[slot] - want).max() <= limit * np.abs(want).max(), (slot, at)
