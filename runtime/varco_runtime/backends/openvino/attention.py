"""The decoder's attention in the one form that OpenVINO's CPU plugin runs as a single node with a cache of its own.

OpenVINO translates ONNX Runtime's GroupQueryAttention to pieces that its plugin does not put together again. So the
node is translated here, to what the plugin recognizes (its `StatefulSDPAFusion`): `ReadValue` -> `Gather` along the
batch -> `Concat` with the new rows -> `Assign`, heads expanded by `Unsqueeze`, `Broadcast` and `Reshape`, then
`ScaledDotProductAttention`. Rotary positions become one node too, where the halves come from `VariadicSplit`.

`Gather` asks for the index of a beam, an input int32 `[batch]`. `seqlens_k` has that type and shape and is not needed
otherwise: positions follow from `total_sequence_length`. It is therefore always 0 here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from varco_runtime.bundle.manifest import ModelFacts, cache_names

BEAM_INPUT = "seqlens_k"
_QKV, _PAST_KEY, _PAST_VALUE, _BEAM, _TOTAL, _COS, _SIN = 0, 3, 4, 5, 6, 7, 8
"""Inputs of GroupQueryAttention, of which 1 and 2 are empty where query, key and value come as one."""
_HIDDEN = np.float32(-65504)
"""What is added to a score that must not be seen: the least number of fp16, far below any score."""


class CachedAttention:
    """Translator of the GroupQueryAttention nodes of one decoder.

    Args:
        model: The shape of the decoder.
    """

    def __init__(self, model: ModelFacts) -> None:
        from openvino import opset13

        self._ops: Any = opset13
        self._heads, self._kv_heads = model.num_attention_heads, model.num_key_value_heads
        self._head_dim = model.head_dim
        self._shared: dict[str, Any] = {}
        """What all layers use: cosines, sines and the mask."""

    def extension(self) -> Any:
        """Return what a `Core` is told so that it translates the nodes by this object."""
        from openvino.frontend.onnx import ConversionExtension

        return ConversionExtension("GroupQueryAttention", "com.microsoft", self.translate)

    def translate(self, node: Any) -> list[Any]:
        """Return attention `[1, S, heads * D]`, present keys and present values of one node."""
        ops, heads, kv_heads, head_dim = self._ops, self._heads, self._kv_heads, self._head_dim
        qkv, beam = node.get_input(_QKV), node.get_input(_BEAM)
        split = ops.reshape(qkv, self._ints(0, 0, heads + 2 * kv_heads, head_dim), special_zero=True)
        split = ops.transpose(split, self._ints(0, 2, 1, 3))  # [1, heads, S, D]
        parts = ops.variadic_split(split, self._int(1), self._ints(heads, kv_heads, kv_heads))
        if not self._shared:
            self._shared = self._positions(qkv, node)
        q, k, v = self._rotated(parts.output(0)), self._rotated(parts.output(1)), parts.output(2)
        keys, values = (
            ops.concat([ops.gather(node.get_input(past), beam, self._int(0)), rows], 2)
            for past, rows in ((_PAST_KEY, k), (_PAST_VALUE, v))
        )
        seen = ops.scaled_dot_product_attention(
            q, self._expanded(keys), self._expanded(values), self._shared["mask"], causal=False
        )
        merged = ops.reshape(
            ops.transpose(seen, self._ints(0, 2, 1, 3)), self._ints(0, 0, heads * head_dim), special_zero=True
        )
        return [merged.output(0), keys.output(0), values.output(0)]

    def _positions(self, qkv: Any, node: Any) -> dict[str, Any]:
        """Return rows of the rotary tables `[1, 1, S, D / 2]`, and the mask `[1, 1, S, total]`."""
        ops = self._ops
        length = ops.gather(ops.shape_of(qkv), self._int(1), self._int(0))
        total = ops.convert(ops.reshape(node.get_input(_TOTAL), self._ints(), special_zero=False), "i64")
        rows = ops.range(ops.subtract(total, length), total, self._int(1), "i64")
        tables = {
            name: ops.unsqueeze(ops.gather(node.get_input(index), rows, self._int(0)), self._ints(0, 1))
            for name, index in (("cos", _COS), ("sin", _SIN))
        }
        columns = ops.range(self._int(0), total, self._int(1), "i64")
        is_seen = ops.less_equal(ops.unsqueeze(columns, self._ints(0)), ops.unsqueeze(rows, self._ints(1)))
        mask = ops.select(is_seen, ops.constant(np.float32(0)), ops.constant(_HIDDEN))
        dtype = node.get_input(_QKV).get_element_type()
        return {**tables, "mask": ops.convert_like(ops.unsqueeze(mask, self._ints(0, 1)), ops.constant(0, dtype))}

    def _rotated(self, x: Any) -> Any:
        """Return x `[1, heads, S, D]` with its first half and its second half turned by each position's angles."""
        ops, half, cos, sin = self._ops, self._head_dim // 2, self._shared["cos"], self._shared["sin"]
        halves = ops.variadic_split(x, self._int(3), self._ints(half, half))
        first, second = halves.output(0), halves.output(1)
        turned = (
            ops.subtract(ops.multiply(first, cos), ops.multiply(second, sin)),
            ops.add(ops.multiply(second, cos), ops.multiply(first, sin)),
        )
        return ops.concat(list(turned), -1)

    def _expanded(self, x: Any) -> Any:
        """Return keys or values with each head as often as query heads share it: `[1, heads, total, D]`."""
        ops, group = self._ops, self._heads // self._kv_heads
        if group == 1:
            return x
        shape = ops.shape_of(x)
        outer, inner = (ops.gather(shape, self._ints(*axes), self._int(0)) for axes in ((0, 1), (2, 3)))
        target = ops.concat([outer, self._ints(group), inner], 0)
        wide = ops.broadcast(ops.unsqueeze(x, self._int(2)), target, broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(wide, self._ints(0, self._heads, -1, self._head_dim), special_zero=True)

    def _ints(self, *values: int) -> Any:
        return self._ops.constant(np.array(values, np.int64))

    def _int(self, value: int) -> Any:
        return self._ops.constant(np.array(value, np.int64))


def make_stateful(decoder: Any, model: ModelFacts) -> None:
    """Turn a decoder's caches from inputs and outputs into states, which are empty until something is put there.

    Args:
        decoder: The `openvino.Model` whose attention `CachedAttention` translated.
        model: The shape of the decoder.
    """
    from openvino import opset13
    from openvino._offline_transformations import apply_make_stateful_transformation

    shape = [-1, model.num_key_value_heads, -1, model.head_dim]
    names = {f"past.{name}": f"present.{name}" for name in cache_names(model.num_layers)}
    decoder.reshape(dict.fromkeys(names, shape))
    dtype = decoder.input(next(iter(names))).get_element_type()
    apply_make_stateful_transformation(decoder, names)
    for op in decoder.get_ops():
        if op.get_type_name() == "ReadValue":
            nothing = np.zeros((1, model.num_key_value_heads, 0, model.head_dim), dtype.to_dtype())
            op.set_arguments([opset13.constant(nothing)])
    decoder.validate_nodes_and_infer_types()


def state_names(num_layers: int) -> list[str]:
    """Return the names of a decoder's states, in the order of `cache_names`."""
    return [f"past.{name}present.{name}" for name in cache_names(num_layers)]
