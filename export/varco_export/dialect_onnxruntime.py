"""The operators in ONNX Runtime's dialect: fused operators of its contrib domain, as its CPU provider runs them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from varco_export.dialect import Array, AttentionHeads, Dialect
from varco_export.graph import DTYPES, MICROSOFT, Graph
from varco_export.linear import FloatPart, Fp8Part, IntegerPart, Part, pack_values, quantise_rows
from varco_export.precision import QUANTISED_BITS, Precision
from varco_export.row_product import RowProduct
from varco_export.tensor import Tensor

MAX_BLOCK_SIZE = 128


class OnnxRuntimeDialect(Dialect):
    """Fused operators of ONNX Runtime's contrib domain, batch of one, shared key/value buffers.

    Linears hold their weight as the checkpoint does, `[out, in]` (FusedMatMul with transB), so that rows stream
    through unchanged. Quantised ones are MatMulNBits.
    """

    def __init__(self, graph: Graph, precision: Precision) -> None:
        super().__init__(graph, precision)
        self._gathered: list[tuple[str, Array, str]] = []
        self._rows = RowProduct(graph)

    def _product(self, x: str, part: Part, precision: str) -> str:
        """x W^T of one part, in the format it is stored in, or for plain floats in the one that was asked for."""
        match part:
            case IntegerPart():
                return self._integer_product(self._ordered(x, part), part)
            case Fp8Part():
                return self._fp8_product(x, part)
        if precision == "int8" and self.precision.row_scales:
            return self._rows.product(x, part)
        if precision in QUANTISED_BITS:
            return self._rounded_product(x, part, QUANTISED_BITS[precision])
        w = self.graph.weight(f"{part.name}.weight", precision, (part.out_features, part.in_features), part.blocks())
        return self.graph.node("FusedMatMul", [x, w], domain=MICROSOFT, transB=1)

    def _rounded_product(self, x: str, part: FloatPart, bits: int) -> str:
        """Floats rounded to the nearest integers on their way."""
        n, k = part.out_features, part.in_features
        block_size = self.precision.block_size
        num_blocks = -(-k // block_size)
        scales = np.empty((n, num_blocks), dtype=self._numpy_type)

        def packed_rows() -> Iterator[Array]:
            row = 0
            for block in part.blocks():
                # 8 MiB of fp32 at a time: the work arrays stay in reach of the caches and far below a large tensor.
                step = max(1, (2 << 20) // k)
                for start in range(0, len(block), step):
                    rows = block[start : start + step]
                    values, block_scales = quantise_rows(rows, bits, block_size)
                    scales[row : row + len(rows)] = block_scales
                    row += len(rows)
                    yield pack_values(values, bits)

        b = self._packed(part, bits, num_blocks, block_size, packed_rows())
        s = self.graph.weight(f"{part.name}.scales", self.precision.compute, (n, num_blocks), [scales])
        return self._matmul_n_bits(x, [b, s], part, bits, block_size)

    def _integer_product(self, x: str, part: IntegerPart) -> str:
        """Integers as they are stored. A group larger than a kernel's block becomes several with the same scale."""
        n, k, bits = part.out_features, part.in_features, part.bits
        block_size = self._block_size(part)
        num_blocks = -(-k // block_size)
        per_group = -(-part.group_size // block_size)

        def by_block(groups: Array) -> Array:
            """`[n, groups]` to `[n, num_blocks]`."""
            repeated: Array = np.repeat(groups, per_group, axis=1)[:, :num_blocks]
            return repeated

        inputs = [
            self._packed(part, bits, num_blocks, block_size, part.packed_blocks(num_blocks * block_size)),
            self.graph.weight(
                f"{part.name}.scales", self.precision.compute, (n, num_blocks), [by_block(part.scales())]
            ),
        ]
        zeros = part.zeros()
        if zeros is not None:
            packed = pack_values(by_block(zeros), bits)
            inputs.append(self.graph.weight(f"{part.name}.zero_points", "uint8", packed.shape, [packed]))
        return self._matmul_n_bits(x, inputs, part, bits, block_size)

    def _block_size(self, part: IntegerPart) -> int:
        """The largest block of input features that a kernel takes, a power of two, and that fits a group."""
        if part.group_size >= part.in_features:
            return MAX_BLOCK_SIZE
        return math.gcd(part.group_size, MAX_BLOCK_SIZE)

    def _packed(
        self, part: FloatPart | IntegerPart, bits: int, num_blocks: int, block_size: int, rows: Iterator[Array]
    ) -> str:
        shape = (part.out_features, num_blocks, block_size * bits // 8)
        return self.graph.weight(f"{part.name}.weight_int{bits}", "uint8", shape, rows)

    def _matmul_n_bits(
        self, x: str, weights: list[str], part: FloatPart | IntegerPart, bits: int, block_size: int
    ) -> str:
        attributes: dict[str, Any] = {
            "K": part.in_features,
            "N": part.out_features,
            "bits": bits,
            "block_size": block_size,
        }
        # Level 4 quantises activations to int8 and may flip a close call; level 1 keeps them in fp32.
        attributes["accuracy_level"] = 4 if self.precision.int8_activations else 1
        return self.graph.node("MatMulNBits", [x, *weights], domain=MICROSOFT, **attributes)

    def _ordered(self, x: str, part: IntegerPart) -> str:
        """x with its features in the order in which the part reads them; gathered once for all who share it."""
        order = part.input_order
        if order is None:
            return x
        self._gathered = [known for known in self._gathered if known[0] == x]
        for _, known_order, value in self._gathered:
            if np.array_equal(known_order, order):
                return value
        indices = self.graph.weight(f"{part.name}.input_order", "int32", order.shape, [order])
        value = self.graph.node("Gather", [x, indices], axis=2)
        self._gathered.append((x, order, value))
        return value

    def _fp8_product(self, x: str, part: Fp8Part) -> str:
        """FP8 values times their scales as floats, and an input rounded to FP8 where the checkpoint asks for it.

        The CPU multiplies no FP8. DequantizeLinear is left alone by onnxruntime's constant folding, so the weights stay
        a byte each in memory; FusedMatMul instead of MatMul keeps its optimizer from fusing the two into an invalid
        node.
        """
        n, k = part.out_features, part.in_features
        w = self.graph.weight(f"{part.name}.weight_fp8", "fp8", (n, k), part.blocks())
        s = self.graph.weight(f"{part.name}.scales", self.precision.compute, (n,), [part.scales()])
        w = self.graph.node("DequantizeLinear", [w, s], axis=0)
        if part.activations == "float":
            return self.graph.node("FusedMatMul", [x, w], domain=MICROSOFT, transB=1)
        scale = self._input_scale(x, part)
        rounded = self.graph.node("Cast", [self.graph.node("Div", [x, scale])], to=DTYPES["fp8"][0], saturate=1)
        rounded = self.graph.node("Cast", [rounded], to=DTYPES[self.precision.compute][0])
        y = self.graph.node("FusedMatMul", [rounded, w], domain=MICROSOFT, transB=1)
        return self.graph.node("Mul", [y, scale])

    def _input_scale(self, x: str, part: Fp8Part) -> str:
        """What x is divided by before it becomes FP8: one number, or each token's largest entry over 448."""
        if part.activations == "tensor":
            value = np.array(part.input_scale, dtype=self._numpy_type)
            return self.graph.constant(f"{part.name}.input_scale", value)
        largest = self.graph.node("ReduceMax", [self.graph.node("Abs", [x]), self.graph.ints(-1)], keepdims=1)
        scale = self.graph.node("Div", [largest, self.graph.constant("fp8_max", np.array(448, self._numpy_type))])
        # A token of zeros: any scale that is not zero.
        tiny = self.graph.constant("smallest", np.array(np.finfo(self._numpy_type).tiny, self._numpy_type))
        return self.graph.node("Max", [scale, tiny])

    # -- vision -----------------------------------------------------------------------------------------------------

    def attention(self, qkv: tuple[str, str, str], num_heads: int) -> str:
        return self.graph.node("MultiHeadAttention", list(qkv), domain=MICROSOFT, num_heads=num_heads)

    # -- language model ---------------------------------------------------------------------------------------------

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
