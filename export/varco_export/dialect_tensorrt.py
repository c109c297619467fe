"""The operators in TensorRT's dialect: standard ONNX of opset 24, no plugins.

What TensorRT 11 parses into native layers: RotaryEmbedding, TensorScatter into caches that are network inputs and outputs of a static
length (bound to one address), Attention with an explicit boolean mask. `Attention`'s own causal flag and `nonpad_kv_seqlen` are not used:
the first is wrong for a query shorter than the keys, the second is dropped by the parser. The graphs also run on ONNX Runtime's CPU
provider, which is how their numbers are tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from varco_export.checkpoint import Tensor
from varco_export.dialect import AttentionHeads
from varco_export.graph import DTYPES, Graph
from varco_export.linear import Linear, pack_values, quantise_rows
from varco_export.precision import QUANTISED_BITS, Precision

Array = np.ndarray[Any, Any]

OPSET = 24
"""TensorScatter and the Attention that takes its caches."""


class TensorRtDialect:
    """Standard operators, batch of one, caches of `max_context` positions. See `Dialect` for the methods."""

    def __init__(self, graph: Graph, precision: Precision) -> None:
        assert graph.opset == OPSET, f"Bug: the TensorRT dialect needs opset {OPSET}, the graph has {graph.opset}"
        self.graph = graph
        self.precision = precision

    # -- small pieces -----------------------------------------------------------------------------------------------

    def vector(self, tensor: Tensor) -> str:
        if self.graph.has_weight(tensor.name):
            return tensor.name
        return self.graph.weight(tensor.name, self.precision.compute, tensor.shape, tensor.blocks())

    def add(self, a: str, b: str) -> str:
        return self.graph.node("Add", [a, b])

    def linear(self, x: str, weights: Linear, head: bool = False) -> str:
        precision = self.precision.head if head else self.precision.weights
        if precision in QUANTISED_BITS:
            rows = self._int4_rows(weights)
        else:
            shape = (weights.out_features, weights.in_features)
            rows = self.graph.weight(f"{weights.name}.weight", precision, shape, weights.blocks())
        # Rows stay as the checkpoint has them; TensorRT folds the transposition into the product.
        columns = self.graph.node("Transpose", [rows], perm=[1, 0])
        y = self.graph.node("MatMul", [x, columns])
        if not weights.biases:
            return y
        name = f"{weights.name}.bias"
        bias = self.graph.weight(name, self.precision.compute, (weights.out_features,), [weights.bias()])
        return self.graph.node("Add", [y, bias])

    def _int4_rows(self, weights: Linear) -> str:
        """Symmetric signed INT4 in blocks along the input features, dequantised to `[out, in]` in the compute type."""
        n, k, block_size = weights.out_features, weights.in_features, self.precision.block_size
        num_blocks = -(-k // block_size)
        scales = np.empty((n, num_blocks), dtype=np.float32)

        def packed_rows() -> Iterator[Array]:
            row = 0
            for block in weights.blocks():
                step = max(1, (2 << 20) // k)
                for start in range(0, len(block), step):
                    rows = block[start : start + step]
                    values, block_scales = quantise_rows(rows, 4, block_size)
                    scales[row : row + len(rows)] = block_scales
                    row += len(rows)
                    # Flipping the top bit of each nibble turns 0..15 around 8 into two's complement around 0.
                    yield pack_values(values, 4) ^ np.uint8(0x88)

        q = self.graph.weight(f"{weights.name}.weight_int4", "int4", (n, num_blocks * block_size), packed_rows())
        s = self.graph.weight(f"{weights.name}.scales", self.precision.compute, (n, num_blocks), [scales])
        return self.graph.node("DequantizeLinear", [q, s], axis=1, block_size=block_size)

    def gelu(self, x: str, approximate: str) -> str:
        return self.graph.node("Gelu", [x], approximate=approximate)

    # -- vision -----------------------------------------------------------------------------------------------------

    def patches(self, pixel_values: str, weight: Tensor, bias: Tensor, num_patches: int) -> str:
        stride = list(weight.shape[2:])
        inputs = [pixel_values, self.vector(weight), self.vector(bias)]
        grid = self.graph.node("Conv", inputs, kernel_shape=stride, strides=stride, pads=[0, 0, 0, 0])
        flat = self.graph.node("Reshape", [grid, self.graph.ints(0, weight.shape[0], num_patches)])
        return self.graph.node("Transpose", [flat], perm=[0, 2, 1])  # [T, P, C]

    def layer_norm(self, x: str, weight: Tensor, bias: Tensor, epsilon: float) -> str:
        inputs = [x, self.vector(weight), self.vector(bias)]
        return self.graph.node("LayerNormalization", inputs, axis=-1, epsilon=epsilon)

    def attention(self, qkv: tuple[str, str, str], num_heads: int) -> str:
        heads = [self._to_heads(part, num_heads) for part in qkv]
        return self._from_heads(self.graph.node("Attention", heads))

    def _to_heads(self, x: str, num_heads: int) -> str:
        """`[B, S, heads * D]` to `[B, heads, S, D]`."""
        split = self.graph.node("Reshape", [x, self.graph.ints(0, 0, num_heads, -1)])
        return self.graph.node("Transpose", [split], perm=[0, 2, 1, 3])

    def _from_heads(self, x: str) -> str:
        """`[B, heads, S, D]` to `[B, S, heads * D]`."""
        merged = self.graph.node("Transpose", [x], perm=[0, 2, 1, 3])
        return self.graph.node("Reshape", [merged, self.graph.ints(0, 0, -1)])

    # -- language model ---------------------------------------------------------------------------------------------

    def rms_norm(self, x: str, weight: Tensor, epsilon: float) -> str:
        return self.graph.node("RMSNormalization", [x, self.vector(weight)], axis=-1, epsilon=epsilon)

    def add_rms_norm(self, x: str, residual: str, weight: Tensor, epsilon: float) -> tuple[str, str]:
        total = self.add(x, residual)
        return self.rms_norm(total, weight, epsilon), total

    def silu_gate(self, gate_up: str, width: int) -> str:
        gate, up = self.graph.value("gate"), self.graph.value("up")
        self.graph.multi_node("Split", [gate_up, self.graph.ints(width, width)], [gate, up], axis=-1)
        silu = self.graph.node("Mul", [gate, self.graph.node("Sigmoid", [gate])])
        return self.graph.node("Mul", [silu, up])

    def begin_cache(self, heads: AttentionHeads, cos_sin: tuple[Array, Array]) -> None:
        """Positions, where to write, and a mask `[1, 1, S, total]` whose width is the length of the context so far."""
        graph, dtype = self.graph, self.precision.compute
        max_context = len(cos_sin[0])
        graph.input("position_ids", "int64", [1, "sequence"])
        graph.input("write_indices", "int64", [1])
        graph.input("attention_mask", "bool", [1, 1, "sequence", "total"])
        shape = [1, heads.num_key_value_heads, max_context, heads.head_dim]
        for layer in range(heads.num_layers):
            for kind in ("key", "value"):
                graph.input(f"past.{layer}.{kind}", dtype, shape)
                graph.output(f"present.{layer}.{kind}", dtype, shape)
        for name, table in zip(("cos_cache", "sin_cache"), cos_sin, strict=True):
            graph.weight(name, dtype, table.shape, [table])
        # A slice's length must come from a tensor of static shape [1]: this one does.
        self._total = graph.node("Shape", ["attention_mask"], start=3, end=4)
        self._heads = heads

    def cached_attention(self, qkv: str, layer: int) -> str:
        graph, heads = self.graph, self._heads
        num_heads, num_kv, dim = heads.num_attention_heads, heads.num_key_value_heads, heads.head_dim
        q, k, v = (graph.value(part) for part in "qkv")
        graph.multi_node("Split", [qkv, graph.ints(num_heads * dim, num_kv * dim, num_kv * dim)], [q, k, v], axis=-1)
        rotary = ["cos_cache", "sin_cache", "position_ids"]
        q = graph.node("RotaryEmbedding", [self._to_heads(q, num_heads), *rotary])
        k = graph.node("RotaryEmbedding", [self._to_heads(k, num_kv), *rotary])
        keys = self._scatter(k, f"{layer}.key")
        values = self._scatter(self._to_heads(v, num_kv), f"{layer}.value")
        return self._from_heads(graph.node("Attention", [q, keys, values, "attention_mask"]))

    def _scatter(self, x: str, cache: str) -> str:
        """Write `[1, heads, S, D]` into the cache; returns its first `total` positions."""
        graph = self.graph
        inputs = [f"past.{cache}", x, "write_indices"]
        whole = graph.node("TensorScatter", inputs, output=f"present.{cache}", axis=2, mode="linear")
        return graph.node("Slice", [whole, graph.ints(0), self._total, graph.ints(2)])

    def last_tokens(self, x: str) -> str:
        return self.graph.node("Gather", [x, self.graph.input("logit_positions", "int64", ["num_logits"])], axis=1)

    def logits(self, x: str) -> None:
        self.graph.node("Cast", [x], output="logits", to=DTYPES["fp32"][0])
