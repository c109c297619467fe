"""The weights of an exported decoder, read back from its files and dequantised with plain arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import external_data_helper, numpy_helper

from tests.conftest import export_bundle
from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.tiny import TinyOptions

Array = np.ndarray[Any, Any]
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
"""Linears of a layer as they are exported, and as checkpoints name them."""


class ExportedDecoder:
    """decoder.onnx with its data."""

    def __init__(self, bundle: Path) -> None:
        self.model = onnx.load(bundle / "decoder.onnx", load_external_data=False)
        external_data_helper.load_external_data_for_model(self.model, str(bundle))
        self.tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}
        self.producers = {output: node for node in self.model.graph.node for output in node.output}

    def nodes(self, op_type: str) -> list[onnx.NodeProto]:
        return [node for node in self.model.graph.node if node.op_type == op_type]

    def rows(self, *linears: str) -> Array:
        """W `[out, in]` in fp32 of the linears that have one of these names, input features in the order of x."""
        return np.concatenate([rows for linear in linears for rows in self._products(linear)])

    def _products(self, linear: str) -> Iterator[Array]:
        for node in self.model.graph.node:
            if len(node.input) < 2:
                continue
            weight, producer = node.input[1], self.producers.get(node.input[1])
            if producer is not None and producer.op_type == "Transpose":  # of the TensorRT dialect
                weight, producer = producer.input[0], self.producers.get(producer.input[0])
            if producer is not None and producer.op_type == "DequantizeLinear":
                weight = producer.input[0]
            if weight.rpartition(".")[0] != linear or weight.endswith((".bias", ".input_order")):
                continue
            if node.op_type == "MatMulNBits":
                yield self._integer_rows(node)
            elif node.op_type == "MatMul":
                yield self._in_input_order(self._standard_rows(weight, producer), node.input[0])
            elif node.op_type == "FusedMatMul" and producer is None:
                yield self.tensors[weight]
            elif node.op_type == "FusedMatMul":
                yield self.tensors[weight].astype(np.float32) * self.tensors[producer.input[1]][:, None]

    def _integer_rows(self, node: onnx.NodeProto) -> Array:
        settings = {attribute.name: attribute.i for attribute in node.attribute}
        bits, n, k, block = settings["bits"], settings["N"], settings["K"], settings["block_size"]
        values = _nibbles(self.tensors[node.input[1]], bits)  # [N, blocks, block]
        scales = self.tensors[node.input[2]]  # [N, blocks]
        zeros = np.full(scales.shape, 2 ** (bits - 1), np.uint8)
        if len(node.input) > 3:
            zeros = _nibbles(self.tensors[node.input[3]], bits)[:, : scales.shape[1]]
        x = node.input[0]
        if bits == 4 and node.input[1].endswith(
            ".weight_int8"
        ):  # 8-bit integers as high and then low nibbles, over (x, x)
            num_blocks = scales.shape[1] // 2
            assert np.array_equal(scales[:, :num_blocks], 16 * scales[:, num_blocks:])
            values = values[:, :num_blocks] << 4 | values[:, num_blocks:]
            zeros = zeros[:, :num_blocks] << 4 | zeros[:, num_blocks:]
            scales, k = scales[:, num_blocks:], k - num_blocks * block
            x = self.producers[x].input[1]
        rows = (values.astype(np.float32) - zeros[:, :, None]) * scales[:, :, None]
        rows = rows.reshape(n, -1)[:, :k]
        assert values.shape[2] == block
        return self._in_input_order(rows, x)

    def _standard_rows(self, weight: str, dequantize: onnx.NodeProto | None) -> Array:
        rows = self.tensors[weight].astype(np.float32)
        if dequantize is None:
            return rows
        scales = self.tensors[dequantize.input[1]].astype(np.float32)
        if scales.ndim == 2:  # in blocks of input features
            return rows * np.repeat(scales, rows.shape[1] // scales.shape[1], axis=1)
        return rows * scales[:, None]

    def _in_input_order(self, rows: Array, x: str) -> Array:
        """Undo a Gather of the input."""
        gather = self.producers.get(x)
        if gather is None or gather.op_type != "Gather" or not gather.input[1].endswith(".input_order"):
            return rows
        back = np.empty_like(rows)
        back[:, self.tensors[gather.input[1]]] = rows
        return back


def _nibbles(packed: Array, bits: int) -> Array:
    if bits == 8:
        return packed
    values = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), np.uint8)
    values[..., 0::2], values[..., 1::2] = packed & 15, packed >> 4
    return values


def export_exactly(checkpoint: Path, target: Path, **options: object) -> Path:
    """Export a quantised checkpoint with nothing rounded: a plain head stays plain, which is not the default."""
    stored = Checkpoint.open(checkpoint).stored
    head = {} if stored is not None and stored.head is not None else {"lm_head": "fp32"}
    return export_bundle(checkpoint, target, **head, **options)


def exported_linears(bundle: Path, options: TinyOptions) -> dict[str, Array]:
    """W of every linear of a bundle's decoder, by canonical name."""
    decoder = ExportedDecoder(bundle)
    text = options.to_config().text
    queries, keys = (text.head_dim * heads for heads in (text.num_attention_heads, text.num_key_value_heads))
    ends = {"qkv_proj": [queries, queries + keys], "gate_up_proj": [options.intermediate_size]}
    weights = {"lm_head": decoder.rows("lm_head")}
    for index in range(options.num_hidden_layers):
        for fused, parts in FUSED.items():
            names = [f"language_model.layers.{index}.{part}" for part in parts]
            rows = decoder.rows(*dict.fromkeys([f"language_model.layers.{index}.{fused}", *names]))
            weights |= zip(names, np.split(rows, ends.get(fused.rpartition(".")[2], [])), strict=True)
    return weights


def assert_equal_bit_for_bit(got: dict[str, Array], expected: dict[str, Array], rounding: Any = None) -> None:
    """`got` holds exact products in fp32; the packer rounds each to the type of its scales (`rounding`, or its own)."""
    assert got.keys() == expected.keys()
    wrong = [
        name
        for name, weight in expected.items()
        if not np.array_equal(got[name].astype(rounding or weight.dtype), weight) or got[name].shape != weight.shape
    ]
    assert not wrong, f"{wrong} differ: suspect zero points, the order of nibbles or the order of input features"
