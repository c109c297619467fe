"""The operators in TensorRT's dialect: standard ONNX of opset 24, no plugins.

What TensorRT parses into native layers: RotaryEmbedding; TensorScatter into caches that are network inputs and outputs
of a static length (bound to one address); Attention with an explicit boolean mask. `Attention`'s own causal flag and
`nonpad_kv_seqlen` are not used: the first is wrong for a query shorter than the keys, the second is dropped by the
parser. The graphs also run on ONNX Runtime's CPU provider, which is how their numbers are tested.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import ml_dtypes
import numpy as np

from varco_export.dialects.dialect import AttentionHeads, Dialect, HeadNorms
from varco_export.dialects.fp8 import FP8_MAX, SMALLEST_SCALE, round_to_fp8, slabs
from varco_export.dialects.linear import FloatPart, Fp8Part, IntegerPart, Part
from varco_export.precision import QUANTIZED_BITS, Precision
from varco_export.quantized.integers import pack as pack_values
from varco_export.reading.tensor import Tensor
from varco_export.writing.graph import DTYPES, Graph
from varco_runtime.bundle.graph_contract import BATCH
from varco_runtime.dtypes import Array
from varco_runtime.errors import ExportError

OPSET = 24
"""TensorScatter and the Attention that takes its caches."""
MIN_BLOCK_SIZE, MAX_BLOCK_SIZE = 16, 128
_SIGN = {4: np.uint8(0x88), 8: np.uint8(0x80)}
"""Flipping the top bit of each value turns 0 .. 2^bits - 1 around the middle into two's complement around 0."""


class TensorRtDialect(Dialect):
    """Standard operators, caches of `max_context` positions. See `Dialect` for the methods.

    Linears hold their weight as the checkpoint does, `[out, in]`, so that rows stream through unchanged; TensorRT folds
    the transposition into the product. Quantized ones are DequantizeLinear on the weight, which it folds too: the
    engine holds the packed values.
    """

    def __init__(self, graph: Graph, precision: Precision) -> None:
        assert graph.opset == OPSET, f"Bug: the TensorRT dialect needs opset {OPSET}, the graph has {graph.opset}"
        super().__init__(graph, precision)

    def _product(self, x: str, part: Part, precision: str) -> str:
        """Return x W^T of one part, in the format it is stored in, or for plain floats in the one asked for."""
        match part:
            case IntegerPart():
                return self._matmul(self._ordered(x, part), self._stored_integers(part))
            case Fp8Part():
                return self._fp8_product(x, part)
        if precision in QUANTIZED_BITS:
            return self._matmul(x, self._rounded_integers(part, QUANTIZED_BITS[precision]))
        if precision == "fp8":
            return self._matmul(x, self._rounded_fp8(part))
        shape = (part.out_features, part.in_features)
        return self._matmul(x, self.graph.weight(f"{part.name}.weight", precision, shape, part.blocks()))

    def _matmul(self, x: str, rows: str) -> str:
        return self.graph.node("MatMul", [x, self.graph.node("Transpose", [rows], perm=[1, 0])])

    # -- integers: symmetric, signed, in blocks of input features ---------------------------------------------------

    def _rounded_integers(self, part: FloatPart, bits: int) -> str:
        """Return floats rounded to the nearest integers while they are written."""
        k, block_size = part.in_features, self.precision.block_size
        scales = np.empty((part.out_features, k // block_size), dtype=np.float32)

        def packed_rows() -> Iterator[Array]:
            row = 0
            for rows in slabs(part.blocks(), k):
                values, scales[row : row + len(rows)] = _round_rows(rows, bits, block_size)
                row += len(rows)
                yield pack_values(values, bits)

        _check_blocks(part, block_size)
        weight = self._integers(part, bits, packed_rows())
        return self._dequantized(weight, part, [scales], scales.shape, block_size)

    def _stored_integers(self, part: IntegerPart) -> str:
        """Return integers as they are stored. A group larger than a block becomes several with the same scale."""
        if part.zeros() is not None:
            raise ExportError(
                f"{part.name} is stored in asymmetric int{part.bits} (with zero points), TensorRT takes symmetric "
                "integers alone. Quantise with sym=true, export the original checkpoint with --decoder int4, or use "
                "--device cpu."
            )
        # The largest power of two, at most 128, that divides a group.
        block_size = math.gcd(min(part.group_size, part.in_features), MAX_BLOCK_SIZE)
        _check_blocks(part, block_size)
        shape = (part.out_features, part.in_features // block_size)
        per_group = -(-part.group_size // block_size)
        stored = part.scales()
        if (stored < 0).any():
            raise ExportError(
                f"{part.name} holds negative scales, TensorRT takes positive ones alone. Use --device cpu, or export "
                "the original checkpoint with --decoder int4."
            )
        scales = np.repeat(np.maximum(stored, SMALLEST_SCALE), per_group, axis=1)[:, : shape[1]]
        blocks = (block ^ _SIGN[part.bits] for block in part.packed_blocks(part.in_features))
        weight = self._integers(part, part.bits, blocks)
        return self._dequantized(weight, part, [scales], shape, block_size)

    def _integers(self, part: FloatPart | IntegerPart, bits: int, blocks: Iterable[Array]) -> str:
        shape = (part.out_features, part.in_features)
        return self.graph.weight(f"{part.name}.weight_int{bits}", f"int{bits}", shape, blocks)

    def _dequantized(
        self, weight: str, part: Part, scales: list[Array], shape: tuple[int, ...], block_size: int
    ) -> str:
        """Return `[out, in]` in the compute type; the scales are written after the weight whose rows made them."""
        names = [weight, self.graph.weight(f"{part.name}.scales", self.precision.compute, shape, scales)]
        return self.graph.node("DequantizeLinear", names, axis=1, block_size=block_size)

    def _ordered(self, x: str, part: IntegerPart) -> str:
        """Return x with its features in the order in which the part reads them."""
        if part.input_order is None:
            return x
        order = part.input_order
        indices = self.graph.weight(f"{part.name}.input_order", "int32", order.shape, [order])
        return self.graph.node("Gather", [x, indices], axis=2)

    # -- FP8: E4M3 with a scale per output feature ------------------------------------------------------------------

    def _rounded_fp8(self, part: FloatPart) -> str:
        """Return floats rounded to the nearest FP8 while they are written; the largest of a row becomes 448."""
        scales = np.empty(part.out_features, dtype=self._numpy_type)
        rows = round_to_fp8(slabs(part.blocks(), part.in_features), scales)
        return self._fp8_rows(part, rows, scales)

    def _fp8_rows(self, part: FloatPart | Fp8Part, blocks: Iterable[Array], scales: Array) -> str:
        n, k = part.out_features, part.in_features
        names = [
            self.graph.weight(f"{part.name}.weight_fp8", "fp8", (n, k), blocks),
            self.graph.weight(f"{part.name}.scales", self.precision.compute, (n,), [scales]),
        ]
        return self.graph.node("DequantizeLinear", names, axis=0)

    def _fp8_product(self, x: str, part: Fp8Part) -> str:
        """Multiply by FP8 as it is stored, the input rounded to FP8 where the checkpoint asks for it.

        TensorRT quantizes activations by one fixed scale. Where each token has its own, x is divided by the token's
        largest entry before, and the product multiplied by it after.
        """
        rows = self._fp8_rows(part, part.blocks(), np.maximum(part.scales(), SMALLEST_SCALE))
        match part.activations:
            case "float":
                return self._matmul(x, rows)
            case "tensor":
                return self._matmul(self._through_fp8(x, part.name, part.input_scale or 0), rows)
        largest = self.graph.node("ReduceMax", [self.graph.node("Abs", [x]), self.graph.ints(-1)], keepdims=1)
        # A token of zeros: any number that is not zero.
        tiny = np.array(np.finfo(np.float16).smallest_normal, self._numpy_type)
        largest = self.graph.node("Max", [largest, self.graph.constant("smallest", tiny)])
        unit = self._through_fp8(self.graph.node("Div", [x, largest]), "fp8", 1 / FP8_MAX)
        return self.graph.node("Mul", [self._matmul(unit, rows), largest])

    def _through_fp8(self, x: str, name: str, scale: float) -> str:
        """Return x rounded to multiples of `scale` that FP8 can express."""
        step = self.graph.constant(f"{name}.input_scale", np.array(scale, self._numpy_type))
        zero = self.graph.constant("fp8_zero", np.array(0, ml_dtypes.float8_e4m3fn))
        quantized = self.graph.node("QuantizeLinear", [x, step, zero])
        return self.graph.node("DequantizeLinear", [quantized, step])

    # -- vision -----------------------------------------------------------------------------------------------------

    def attention(self, qkv: tuple[str, str, str], num_heads: int) -> str:
        heads = [self._to_heads(part, num_heads) for part in qkv]
        return self._from_heads(self.graph.node("Attention", heads))

    def _to_heads(self, x: str, num_heads: int) -> str:
        """Turn `[B, S, heads * D]` into `[B, heads, S, D]`."""
        split = self.graph.node("Reshape", [x, self.graph.ints(0, 0, num_heads, -1)])
        return self.graph.node("Transpose", [split], perm=[0, 2, 1, 3])

    def _from_heads(self, x: str) -> str:
        """Turn `[B, heads, S, D]` into `[B, S, heads * D]`."""
        merged = self.graph.node("Transpose", [x], perm=[0, 2, 1, 3])
        return self.graph.node("Reshape", [merged, self.graph.ints(0, 0, -1)])

    # -- language model ---------------------------------------------------------------------------------------------

    def add_rms_norm(self, x: str, residual: str, weight: Tensor, epsilon: float) -> tuple[str, str]:
        total = self.add(x, residual)
        return self.rms_norm(total, weight, epsilon), total

    def begin_cache(self, heads: AttentionHeads, cos_sin: tuple[Array, Array]) -> None:
        """Declare positions, where to write, a mask `[B, 1, S, total]` as wide as the context so far, and the caches.

        The caches have a static length, that of the rotary tables.
        """
        graph = self.graph
        graph.input("position_ids", "int64", [BATCH, "sequence"])
        graph.input("write_indices", "int64", [BATCH])
        graph.input("attention_mask", "bool", [BATCH, 1, "sequence", "total"])
        self._declare_caches(heads, len(cos_sin[0]), cos_sin)
        # A slice's length must come from a tensor of static shape [1]: this one does.
        self._total = graph.node("Shape", ["attention_mask"], start=3, end=4)

    def cached_attention(self, qkv: str, layer: int, norms: HeadNorms | None = None) -> str:
        graph, num_kv = self.graph, self._heads.num_key_value_heads
        q, k, v = self._split_heads(qkv)
        q = self._to_heads(q, self._heads.num_attention_heads)
        if norms is not None:
            q = self.rms_norm(q, norms.query, norms.epsilon)
        rotary = ["cos_cache", "sin_cache", "position_ids"]
        q = graph.node("RotaryEmbedding", [q, *rotary])
        k = self._to_heads(k, num_kv)
        if norms is not None:
            k = self.rms_norm(k, norms.key, norms.epsilon)
        k = graph.node("RotaryEmbedding", [k, *rotary])
        keys = self._scatter(k, f"{layer}.key")
        values = self._scatter(self._to_heads(v, num_kv), f"{layer}.value")
        return self._from_heads(graph.node("Attention", [q, keys, values, "attention_mask"]))

    def _scatter(self, x: str, cache: str) -> str:
        """Write `[B, heads, S, D]` into the cache; returns its first `total` positions."""
        graph = self.graph
        inputs = [f"past.{cache}", x, "write_indices"]
        whole = graph.node("TensorScatter", inputs, output=f"present.{cache}", axis=2, mode="linear")
        return graph.node("Slice", [whole, graph.ints(0), self._total, graph.ints(2)])

    def last_tokens(self, x: str) -> str:
        return self.graph.node("Gather", [x, self.graph.input("logit_positions", "int64", ["num_logits"])], axis=1)

    def logits(self, x: str) -> None:
        """Declare the logits, and each position's most likely token: the next one without a copy to the host."""
        logits = self.graph.node("Cast", [x], output="logits", to=DTYPES["fp32"][0])
        self.graph.node("ArgMax", [logits], output="next_token", axis=-1, keepdims=0)
        self.graph.output("next_token", "int64", [BATCH, "num_logits"])


def _round_rows(rows: Array, bits: int, block_size: int) -> tuple[Array, Array]:
    """Round rows `[n, k]` to signed symmetric integers in blocks along k, each with one positive scale.

    Returns values `[n, blocks, block_size]` as the low bits of uint8, and scales `[n, blocks]` fp32. No rule with
    negative scales here (`quantize_rows`), which use one level more: TensorRT's parser refuses them.
    """
    half = 1 << (bits - 1)
    values = rows.astype(np.float32).reshape(len(rows), -1, block_size)
    scales = np.maximum(values.max(axis=2) / np.float32(half - 1), values.min(axis=2) / np.float32(-half))
    scales = np.maximum(scales, np.float32(SMALLEST_SCALE))
    values = np.clip(np.rint(values / scales[:, :, None]), -half, half - 1).astype(np.int8)
    return values.view(np.uint8) & np.uint8(2 * half - 1), scales


def _check_blocks(part: FloatPart | IntegerPart, block_size: int) -> None:
    """Check that blocks divide the input features evenly and have at least 16 of them, as TensorRT's do."""
    if block_size < MIN_BLOCK_SIZE or part.in_features % block_size:
        raise ExportError(
            f"{part.name} has {part.in_features} input features in blocks of {block_size}, TensorRT takes blocks of 16 "
            "or more that divide them evenly. Choose another --block-size or group size, or export with --decoder fp16."
        )
