"""Round-to-nearest quantisation: what is stored, and that ONNX Runtime reads it as meant."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from varco_export.dialects.linear import quantize_rows
from varco_export.quantized.integers import pack as pack_values


def dequantise(values: np.ndarray, scales: np.ndarray, bits: int, width: int) -> np.ndarray:
    rows = (values.astype(np.float32) - (1 << (bits - 1))) * scales[:, :, None]
    return rows.reshape(len(rows), -1)[:, :width]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize("width", [128, 200])
def test_the_rounding_error_is_at_most_one_step(bits: int, block_size: int, width: int) -> None:
    rows = np.random.default_rng(bits).normal(size=(7, width)).astype(np.float32)
    values, scales = quantize_rows(rows, bits, block_size)
    step = np.repeat(np.abs(scales), block_size, axis=1)[:, :width]
    error = np.abs(dequantise(values, scales, bits, width) - rows)
    # Half a step, or up to one where the side opposite to the largest entry has one level fewer.
    assert (error <= step * 1.0001).all()
    assert np.median(error / step) < 0.5


@pytest.mark.parametrize("bits", [4, 8])
def test_the_largest_entry_of_every_block_is_exact(bits: int) -> None:
    rows = np.random.default_rng(3).normal(size=(5, 96)).astype(np.float32)
    values, scales = quantize_rows(rows, bits, 32)
    back = dequantise(values, scales, bits, 96)
    blocks, back_blocks = rows.reshape(-1, 32), back.reshape(-1, 32)
    largest = np.abs(blocks).argmax(axis=1)
    index = np.arange(len(blocks))
    np.testing.assert_allclose(back_blocks[index, largest], blocks[index, largest], rtol=1e-6)


def test_a_block_of_zeros_stays_zero() -> None:
    values, scales = quantize_rows(np.zeros((2, 64), dtype=np.float32), 4, 32)
    assert (dequantise(values, scales, 4, 64) == 0).all()
    assert np.isfinite(scales).all()


@pytest.mark.parametrize("largest", [1e-45, 1e-42, 1e-38, 3.4e38])
def test_numbers_at_the_ends_of_fp32_give_no_others(largest: float) -> None:
    rows = np.linspace(-largest, largest, 128, dtype=np.float32).reshape(2, 64)
    for bits in (4, 8):
        values, scales = quantize_rows(rows, bits, 32)
        assert np.isfinite(back := dequantise(values, scales, bits, 64)).all()
        assert np.abs(back - rows).max() <= max(2 * np.abs(scales).max(), 1e-38)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("block_size", "width"), [(32, 96), (64, 200), (128, 64)])
@pytest.mark.parametrize("accuracy_level", [1, 4])
def test_onnxruntime_multiplies_by_the_dequantised_rows(
    bits: int, block_size: int, width: int, accuracy_level: int
) -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(24, width)).astype(np.float32)
    values, scales = quantize_rows(rows, bits, block_size)
    x = rng.normal(size=(1, 3, width)).astype(np.float32)
    expected = x @ dequantise(values, scales, bits, width).T

    node = helper.make_node(
        "MatMulNBits",
        ["x", "b", "s"],
        ["y"],
        domain="com.microsoft",
        K=width,
        N=24,
        bits=bits,
        block_size=block_size,
        accuracy_level=accuracy_level,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "s", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "s", 24])],
        [numpy_helper.from_array(pack_values(values, bits), "b"), numpy_helper.from_array(scales, "s")],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    # Level 4 rounds the activations to int8; level 1 is exact.
    tolerance = 0.02 if accuracy_level == 4 else 1e-5
    assert np.abs(y - expected).max() / np.abs(expected).max() < tolerance
