"""The operators that the networks are written in, and their form in ONNX Runtime's dialect.

`vision.py`, `projector.py` and `decoder.py` describe each network once, against the methods of `Dialect`. A dialect
decides which ONNX operators they become: `OnnxRuntimeDialect` uses the fused `com.microsoft` operators.

Values are names of `[1, S, features]` activations unless a method says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from varco_export.checkpoint import Tensor
from varco_export.graph import DTYPES, MICROSOFT, Graph
from varco_export.linear import Linear, pack_values, quantise_rows
from varco_export.precision import QUANTISED_BITS, Precision

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class AttentionHeads:
    """The shape of the language model's attention."""

    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int


class Dialect(Protocol):
    """What a network may be made of."""

    graph: Graph
    precision: Precision

    def vector(self, tensor: Tensor) -> str:
        """A small weight (norm, bias, position table) in the compute type."""

    def add(self, a: str, b: str) -> str: ...

    def linear(self, x: str, weights: Linear, head: bool = False) -> str:
        """x W^T + b. `head`: use the precision of the language model's head."""

    def patches(self, pixel_values: str, weight: Tensor, bias: Tensor, num_patches: int) -> str:
        """A convolution whose stride is its kernel: `[T, 3, H, W]` to `[T, num_patches, features]`."""

    def layer_norm(self, x: str, weight: Tensor, bias: Tensor, epsilon: float) -> str: ...

    def gelu(self, x: str, approximate: str) -> str:
        """`approximate` is `none` (the exact erf form) or `tanh`."""

    def attention(self, qkv: tuple[str, str, str], num_heads: int) -> str:
        """Every position sees every other; q, k, v `[T, P, features]`."""

    def rms_norm(self, x: str, weight: Tensor, epsilon: float) -> str: ...

    def add_rms_norm(self, x: str, residual: str, weight: Tensor, epsilon: float) -> tuple[str, str]:
        """The norm of x + residual, and x + residual itself."""

    def silu_gate(self, gate_up: str, width: int) -> str:
        """silu(gate) * up, where `gate_up` `[1, S, 2 * width]` holds gate and then up."""

    def begin_cache(self, heads: AttentionHeads, cos_sin: tuple[Array, Array]) -> None:
        """Declare what `cached_attention` needs: lengths, a key and a value cache per layer, rotary tables.

        `cos_sin` are two tables `[max_context, head_dim / 2]`, position by position.
        """

    def cached_attention(self, qkv: str, layer: int) -> str:
        """Rotate q and k, append k and v to the layer's cache, attend causally to the cache so far."""

    def last_tokens(self, x: str) -> str:
        """The last `num_logits` positions of x."""

    def logits(self, x: str) -> None:
        """Declare x the graph's output, in fp32."""


class OnnxRuntimeDialect:
    """Fused operators of ONNX Runtime's contrib domain, batch of one, shared key/value buffers.

    Linears hold their weight as the checkpoint does, `[out, in]` (FusedMatMul with transB), so that rows stream
    through unchanged. Quantised ones are MatMulNBits.
    """

    def __init__(self, graph: Graph, precision: Precision) -> None:
        self.graph = graph
        self.precision = precision
        self._numpy_type = DTYPES[precision.compute][1]

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
            y = self._quantised_matmul(x, weights, QUANTISED_BITS[precision])
        else:
            shape = (weights.out_features, weights.in_features)
            w = self.graph.weight(f"{weights.name}.weight", precision, shape, weights.blocks())
            y = self.graph.node("FusedMatMul", [x, w], domain=MICROSOFT, transB=1)
        if not weights.biases:
            return y
        name = f"{weights.name}.bias"
        bias = self.graph.weight(name, self.precision.compute, (weights.out_features,), [weights.bias()])
        return self.graph.node("Add", [y, bias])

    def _quantised_matmul(self, x: str, weights: Linear, bits: int) -> str:
        n, k = weights.out_features, weights.in_features
        block_size = self.precision.block_size
        num_blocks = -(-k // block_size)
        scales = np.empty((n, num_blocks), dtype=self._numpy_type)

        def packed_rows() -> Iterator[Array]:
            row = 0
            for block in weights.blocks():
                # 8 MiB of fp32 at a time: the work arrays stay in reach of the caches and far below a large tensor.
                step = max(1, (2 << 20) // k)
                for start in range(0, len(block), step):
                    rows = block[start : start + step]
                    values, block_scales = quantise_rows(rows, bits, block_size)
                    scales[row : row + len(rows)] = block_scales
                    row += len(rows)
                    yield pack_values(values, bits)

        blob = block_size * bits // 8
        b = self.graph.weight(f"{weights.name}.weight_int{bits}", "uint8", (n, num_blocks, blob), packed_rows())
        s = self.graph.weight(f"{weights.name}.scales", self.precision.compute, (n, num_blocks), [scales])
        attributes: dict[str, Any] = {"K": k, "N": n, "bits": bits, "block_size": block_size}
        # Level 4 quantises activations to int8 and may flip a close call; level 1 keeps them in fp32.
        attributes["accuracy_level"] = 4 if self.precision.int8_activations else 1
        return self.graph.node("MatMulNBits", [x, b, s], domain=MICROSOFT, **attributes)

    def gelu(self, x: str, approximate: str) -> str:
        return self.graph.node("Gelu", [x], approximate=approximate)

    # -- vision -----------------------------------------------------------------------------------------------------

    def patches(self, pixel_values: str, weight: Tensor, bias: Tensor, num_patches: int) -> str:
        stride = list(weight.shape[2:])
        inputs = [pixel_values, self.vector(weight), self.vector(bias)]
        grid = self.graph.node(
            "Conv", inputs, kernel_shape=stride, strides=stride, pads=[0, 0, 0, 0]
        )  # [T, C, rows, columns]
        flat = self.graph.node("Reshape", [grid, self.graph.ints(0, weight.shape[0], num_patches)])
        return self.graph.node("Transpose", [flat], perm=[0, 2, 1])  # [T, P, C]

    def layer_norm(self, x: str, weight: Tensor, bias: Tensor, epsilon: float) -> str:
        inputs = [x, self.vector(weight), self.vector(bias)]
        return self.graph.node("LayerNormalization", inputs, axis=-1, epsilon=epsilon)

    def attention(self, qkv: tuple[str, str, str], num_heads: int) -> str:
        return self.graph.node("MultiHeadAttention", list(qkv), domain=MICROSOFT, num_heads=num_heads)

    # -- language model ---------------------------------------------------------------------------------------------

    def rms_norm(self, x: str, weight: Tensor, epsilon: float) -> str:
        return self.graph.node("RMSNormalization", [x, self.vector(weight)], axis=-1, epsilon=epsilon)

    def add_rms_norm(self, x: str, residual: str, weight: Tensor, epsilon: float) -> tuple[str, str]:
        normed, total = self.graph.value("normed"), self.graph.value("residual")
        self.graph.multi_node(
            "SkipSimplifiedLayerNormalization",
            [x, residual, self.vector(weight)],
            [normed, "", "", total],
            domain=MICROSOFT,
            epsilon=epsilon,
        )
        return normed, total

    def silu_gate(self, gate_up: str, width: int) -> str:
        gate, up = self.graph.value("gate"), self.graph.value("up")
        self.graph.multi_node("Split", [gate_up, self.graph.ints(width, width)], [gate, up], axis=-1)
        silu = self.graph.node("Mul", [gate, self.graph.node("Sigmoid", [gate])])
        return self.graph.node("Mul", [silu, up])

    def begin_cache(self, heads: AttentionHeads, cos_sin: tuple[Array, Array]) -> None:
        """Past and present are separate values of the graph; the runtime binds both to the same memory, of any length
        up to max_context."""
        graph, dtype = self.graph, self.precision.compute
        graph.input("seqlens_k", "int32", [1])
        graph.input("total_sequence_length", "int32", [])
        shape: list[int | str] = [1, heads.num_key_value_heads, "max_context", heads.head_dim]
        for layer in range(heads.num_layers):
            for kind in ("key", "value"):
                graph.input(f"past.{layer}.{kind}", dtype, shape)
                graph.output(f"present.{layer}.{kind}", dtype, shape)
        for name, table in zip(("cos_cache", "sin_cache"), cos_sin, strict=True):
            graph.weight(name, dtype, table.shape, [table])
        self._heads = heads

    def cached_attention(self, qkv: str, layer: int) -> str:
        past = [f"past.{layer}.key", f"past.{layer}.value"]
        lengths = ["seqlens_k", "total_sequence_length"]
        output = self.graph.value("attention")
        self.graph.multi_node(
            "GroupQueryAttention",
            [qkv, "", "", *past, *lengths, "cos_cache", "sin_cache"],
            [output, f"present.{layer}.key", f"present.{layer}.value"],
            domain=MICROSOFT,
            num_heads=self._heads.num_attention_heads,
            kv_num_heads=self._heads.num_key_value_heads,
            do_rotary=1,
        )
        return output

    def last_tokens(self, x: str) -> str:
        count = self.graph.input("num_logits", "int64", [1])
        start = self.graph.node("Neg", [count])
        end = self.graph.ints(np.iinfo(np.int64).max)
        return self.graph.node("Slice", [x, start, end, self.graph.ints(1)])

    def logits(self, x: str) -> None:
        self.graph.node("Cast", [x], output="logits", to=DTYPES["fp32"][0])
