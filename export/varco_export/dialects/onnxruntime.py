"""The operators in ONNX Runtime's dialect: fused operators of its contrib domain, as its CPU provider runs them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from varco_export.dialects.dialect import AttentionHeads, Dialect, HeadNorms
from varco_export.dialects.linear import FloatPart, Fp8Part, IntegerPart, Part, quantize_rows
from varco_export.dialects.row_product import RowProduct
from varco_export.precision import QUANTIZED_BITS, Precision
from varco_export.quantized.integers import pack as pack_values
from varco_export.reading.tensor import Tensor
from varco_export.writing.graph import DTYPES, MICROSOFT, Graph
from varco_runtime.bundle.graph_contract import BATCH
from varco_runtime.dtypes import Array

MAX_BLOCK_SIZE = 128


class OnnxRuntimeDialect(Dialect):
    """Fused operators of ONNX Runtime's contrib domain, shared key/value buffers.

    Linears hold their weight as the checkpoint does, `[out, in]` (FusedMatMul with transB), so that rows stream
    through unchanged. Quantised ones are MatMulNBits.
    """

    head_dim_unit = 16
    """GroupQueryAttention refuses others when it runs (onnxruntime 1.32, CPU and CUDA alike)."""
    splits_bytes = True
    """Whether 8-bit integers times floats are written as 4-bit ones."""

    def __init__(self, graph: Graph, precision: Precision) -> None:
        super().__init__(graph, precision)
        self._gathered: list[tuple[str, Array, str]] = []
        self._last_doubled: tuple[str, int, str] | None = None
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
        if precision in QUANTIZED_BITS:
            return self._rounded_product(x, part, QUANTIZED_BITS[precision])
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
                    values, block_scales = quantize_rows(rows, bits, block_size)
                    with np.errstate(over="ignore"):  # `Graph.weight` names them
                        scales[row : row + len(rows)] = block_scales
                    row += len(rows)
                    yield pack_values(values, bits)

        return self._integers(x, part, bits, block_size, packed_rows(), lambda: scales, None)

    def _integer_product(self, x: str, part: IntegerPart) -> str:
        """Integers as they are stored. A group larger than a kernel's block becomes several with the same scale."""
        k, bits = part.in_features, part.bits
        block_size = self._block_size(part)
        num_blocks = -(-k // block_size)
        per_group = -(-part.group_size // block_size)

        def by_block(groups: Array) -> Array:
            """`[n, groups]` to `[n, num_blocks]`."""
            repeated: Array = np.repeat(groups, per_group, axis=1)[:, :num_blocks]
            return repeated

        rows = part.packed_blocks(num_blocks * block_size)
        zeros = part.zeros()
        return self._integers(
            x,
            part,
            bits,
            block_size,
            rows,
            lambda: by_block(part.scales()),
            None if zeros is None else by_block(zeros),
        )

    def _block_size(self, part: IntegerPart) -> int:
        """The largest block of input features that a kernel takes, a power of two, and that fits a group."""
        if part.group_size >= part.in_features:
            return MAX_BLOCK_SIZE
        return math.gcd(part.group_size, MAX_BLOCK_SIZE)

    def _integers(
        self,
        x: str,
        part: FloatPart | IntegerPart,
        bits: int,
        block_size: int,
        rows: Iterator[Array],
        scales: Callable[[], Array],
        zeros: Array | None,
    ) -> str:
        """x W^T for W in blocks of integers. `rows` are blocks of packed rows; `scales` and `zeros` `[N, blocks]`, the
        first asked for when the rows are written."""
        num_blocks = -(-part.in_features // block_size)
        # Level 4 quantises activations to int8 and may flip a close call; level 1 keeps them in fp32.
        level = 4 if self.precision.int8_activations else 1
        if bits == 8 and level == 1 and self.splits_bytes:
            return self._split_integers(x, part, block_size, rows, scales, zeros)
        shape = (part.out_features, num_blocks, block_size * bits // 8)
        inputs = [self.graph.weight(f"{part.name}.weight_int{bits}", "uint8", shape, rows)]
        inputs.append(self._weight(part, "scales", scales()))
        if zeros is not None:
            inputs.append(self._weight(part, "zero_points", pack_values(zeros, bits)))
        return self._matmul_n_bits(x, inputs, part.in_features, part.out_features, bits, block_size, level)

    def _split_integers(
        self,
        x: str,
        part: FloatPart | IntegerPart,
        block_size: int,
        rows: Iterator[Array],
        scales: Callable[[], Array],
        zeros: Array | None,
    ) -> str:
        """8-bit integers times floats as two runs of 4-bit integers, high nibbles and then low ones, over (x, x).

        scale (q - zero) = 16 scale (high - high zero) + scale (low - low zero), nothing rounded. onnxruntime 1.31 has
        no kernel for floats times 8-bit integers on a CPU and unpacks the whole weight for every token: 28 ms for 896 x
        9728, against 0.6 ms this way.
        """
        n, k = part.out_features, part.in_features
        num_blocks = -(-k // block_size)

        def nibbles(block: Array) -> Array:
            flat = block.reshape(len(block), -1)
            return pack_values(np.concatenate([flat >> 4, flat & 15], axis=1), 4)

        shape = (n, 2 * num_blocks, block_size // 2)
        inputs = [self.graph.weight(f"{part.name}.weight_int8", "uint8", shape, map(nibbles, rows))]
        low_scales = scales()
        inputs.append(self._weight(part, "scales", np.concatenate([16 * low_scales, low_scales], axis=1)))
        zeros = np.full((n, num_blocks), 128, np.uint8) if zeros is None else zeros
        zeros = np.concatenate([zeros >> 4, zeros & 15], axis=1)
        inputs.append(self._weight(part, "zero_points", pack_values(zeros, 4)))
        width = num_blocks * block_size
        return self._matmul_n_bits(self._doubled(x, width - k), inputs, width + k, n, 4, block_size, 1)

    def _doubled(self, x: str, padding: int) -> str:
        """(x, x), the first one filled up with zeros to whole blocks; once for all who share it."""
        if self._last_doubled is None or self._last_doubled[:2] != (x, padding):
            first = x
            if padding:
                first = self.graph.node("Pad", [x, self.graph.ints(0, padding), "", self.graph.ints(-1)])
            self._last_doubled = (x, padding, self.graph.node("Concat", [first, x], axis=-1))
        return self._last_doubled[2]

    def _weight(self, part: FloatPart | IntegerPart, kind: str, values: Array) -> str:
        dtype = "uint8" if values.dtype == np.uint8 else self.precision.compute
        return self.graph.weight(f"{part.name}.{kind}", dtype, values.shape, [values])

    def _matmul_n_bits(self, x: str, weights: list[str], k: int, n: int, bits: int, block_size: int, level: int) -> str:
        attributes: dict[str, Any] = {"K": k, "N": n, "bits": bits, "block_size": block_size, "accuracy_level": level}
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
        self.graph.input("seqlens_k", "int32", [BATCH])
        self.graph.input("total_sequence_length", "int32", [])
        self._declare_caches(heads, "max_context", cos_sin)  # of any length: the graph names none

    def cached_attention(self, qkv: str, layer: int, norms: HeadNorms | None = None) -> str:
        inputs = [qkv, "", ""]
        if norms is not None:
            q, k, v = self._split_heads(qkv)
            inputs = [self._norm_heads(q, norms.query, norms.epsilon), self._norm_heads(k, norms.key, norms.epsilon), v]
        return self._attend(inputs, layer)

    def _norm_heads(self, x: str, weight: Tensor, epsilon: float) -> str:
        """Return x `[1, S, heads * head_dim]` with each head normalized."""
        graph = self.graph
        heads = graph.node("Reshape", [x, graph.ints(0, 0, -1, self._heads.head_dim)])  # [1, S, heads, head_dim]
        normed = graph.node("SimplifiedLayerNormalization", [heads, self.vector(weight)], axis=-1, epsilon=epsilon)
        return graph.node("Reshape", [normed, graph.ints(0, 0, -1)])

    def _attend(self, qkv: list[str], layer: int, more: Sequence[str] = (), **attributes: float) -> str:
        """Return GroupQueryAttention on q, k and v, or all three in one and two empty names.

        `more`: its inputs behind the rotary tables; `attributes`: others than the numbers of heads.
        """
        cache = self.precision.cache
        if cache is not None:  # attention is in the type of its cache
            qkv = [self.graph.node("Cast", [x], to=DTYPES[cache][0]) if x else "" for x in qkv]
        past = [f"past.{layer}.key", f"past.{layer}.value"]
        lengths = ["seqlens_k", "total_sequence_length"]
        output = self.graph.value("attention")
        self.graph.multi_node(
            "GroupQueryAttention",
            [*qkv, *past, *lengths, "cos_cache", "sin_cache", *more],
            [output, f"present.{layer}.key", f"present.{layer}.value"],
            domain=MICROSOFT,
            num_heads=self._heads.num_attention_heads,
            kv_num_heads=self._heads.num_key_value_heads,
            do_rotary=1,
            **attributes,
        )
        return output if cache is None else self.graph.node("Cast", [output], to=DTYPES[self.precision.compute][0])

    def last_tokens(self, x: str) -> str:
        count = self.graph.input("num_logits", "int64", [1])
        start = self.graph.node("Neg", [count])
        end = self.graph.ints(np.iinfo(np.int64).max)
        return self.graph.node("Slice", [x, start, end, self.graph.ints(1)])

    def logits(self, x: str) -> None:
        self.graph.node("Cast", [x], output="logits", to=DTYPES["fp32"][0])
