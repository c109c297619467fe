"""The operators as ONNX Runtime's CUDA provider runs them fast, inside a CUDA graph and without cuDNN.

Differences from the CPU's form, each for a condition of the provider (onnxruntime's operator documentation,
`docs/contrib_ops/cuda`, and its table of kernels, `docs/OperatorKernels.md`):

- Every node has a CUDA kernel, so that a decode step can be captured: no Identity and no Pad, whose kernels do not
  reach opset 23; positions whose logits are wanted come as indices on the device, not as a slice's bounds on the host.
- Nothing needs cuDNN, which onnxruntime-gpu neither contains nor requires: the patch convolution is a reshape and a
  product, the packing's sum is a product, the next token comes from TopK, and the tower attends with ONNX's Attention,
  as MultiHeadAttention asks for cuDNN whichever kernel it takes (1.31).
- The decoder looks its tokens up itself and puts the picture's rows in between, so a decode step is one run.
- Floats that the host fills are fp32: a cast on the device is cheaper than one on the host, and numpy has no bf16.
- A node costs a launch, which a step of one token feels: gate and up are products of their own, as a Split of one is a
  node and moves a prompt's widest activations once more, and one node multiplies them (`multiply_gate`).
- GroupQueryAttention normalizes the heads of q and k itself, which the CPU's kernel refuses.
- Symmetric integers go in blocks of 32, which `fpA_intB` takes; FP8 is `MatMulBlockQuantizedFp8Weight`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from varco_export.dialects.dialect import HeadNorms
from varco_export.dialects.fp8 import round_to_fp8, slabs
from varco_export.dialects.largest import block_width, infinite_for_nan, infinity, largest
from varco_export.dialects.linear import FloatPart, Fp8Part, IntegerPart, Linear, Part
from varco_export.dialects.onnxruntime import OnnxRuntimeDialect
from varco_export.reading.tensor import Tensor
from varco_export.writing.graph import DTYPES, MICROSOFT, Shape
from varco_runtime.backends.kernels import FUSED_BLOCK_SIZE, FUSED_ROWS
from varco_runtime.bundle.graph_contract import BATCH
from varco_runtime.dtypes import Array

TIE_STEP = 2.0**-44
"""What one token id weighs against a logit: exact in fp64 for logits below 256, and less than two fp16 or fp32 logits
of at least 1/8 can differ by, for up to 2^18 tokens."""


_UNUSED = ("",) * 5
"""GroupQueryAttention's inputs between the rotary tables and the norms' weights (14 and 15): positions, an added mask,
a sink, and scales of a quantized cache."""
GATE_GROUP, LEAST_GATE_GROUP = 512, 64
"""Features of whose ups `multiply_gate` lets a norm be taken, and the fewest."""


class CudaDialect(OnnxRuntimeDialect):
    """See `Dialect` for the methods and this module's text for the differences."""

    splits_bytes = False  # the GPU has kernels for them

    # -- inputs and outputs -----------------------------------------------------------------------------------------

    def host_input(self, name: str, shape: Shape) -> str:
        return self.graph.node("Cast", [self.graph.input(name, "fp32", shape)], to=DTYPES[self.precision.compute][0])

    def output(self, name: str, x: str, shape: Shape) -> None:
        self.graph.rename(x, self.graph.output(name, self.precision.compute, shape))

    def embeddings(self, table: Tensor) -> str:
        """Tokens looked up, and where `is_image` the rows `image_rows` of `image_tokens` instead.

        `image_tokens` has at least one row, as Gather reads one for every position.
        """
        graph, width = self.graph, table.shape[1]
        image_tokens = graph.input("image_tokens", self.precision.compute, ["num_image_tokens", width])
        image_rows = graph.input("image_rows", "int64", [BATCH, "sequence"])
        is_image = graph.input("is_image", "bool", [BATCH, "sequence", 1])
        text = self._token_rows(table)
        picture = graph.node("Gather", [image_tokens, image_rows], axis=0)
        return graph.node("Where", [is_image, picture, text])

    def _token_rows(self, table: Tensor) -> str:
        token_ids = self.graph.input("token_ids", "int64", [BATCH, "sequence"])
        return self.graph.node("Gather", [self.vector(table), token_ids], axis=0)

    def last_tokens(self, x: str) -> str:
        return self.graph.node("Gather", [x, self.graph.input("logit_positions", "int64", ["num_logits"])], axis=1)

    def logits(self, x: str) -> None:
        super().logits(x)
        self._next_token()

    def _next_token(self) -> None:
        """`next_token` `[B, num_logits]`: the largest logit's token, the first of equals as on the host; -1 where a
        logit of the row is NaN or plus infinity, of which no largest is known.

        Each logit is lowered by its id's `TIE_STEP` in fp64, so no two are equal, and the largest is sought in two
        steps: a row of many values would keep a single block of threads busy.
        """
        graph = self.graph
        vocab_size = self._vocab_size
        width = block_width(vocab_size)
        steps = np.arange(vocab_size, dtype=np.float64) * TIE_STEP
        lowered = [graph.node("Cast", ["logits"], to=DTYPES["fp64"][0])]
        lowered.append(graph.weight("tie_steps", "fp64", (vocab_size,), [steps]))
        scores = infinite_for_nan(graph, graph.node("Sub", lowered), np.float64)
        scores = graph.node("Reshape", [scores, graph.ints(0, 0, vocab_size // width, width)])
        best, place = largest(graph, scores)  # [B, n, blocks, 1]
        shape = graph.ints(0, 0, -1)
        best, block = largest(graph, graph.node("Reshape", [best, shape]))  # [B, n, 1]
        place = graph.node("GatherElements", [graph.node("Reshape", [place, shape]), block], axis=2)
        token = graph.node("Add", [graph.node("Mul", [block, graph.ints(width)]), place])
        none = graph.constant("no_token", np.array(-1, np.int64))
        token = graph.node("Where", [graph.node("Less", [best, infinity(graph, np.float64)]), token, none])
        graph.node("Reshape", [token, graph.ints(0, -1)], output="next_token")
        graph.output("next_token", "int64", [BATCH, "num_logits"])

    def cached_attention(self, qkv: str, layer: int, norms: HeadNorms | None = None) -> str:
        packed = [qkv, "", ""]
        if norms is None:
            return self._attend(packed, layer)
        weights = [self.vector(norms.query), self.vector(norms.key)]
        return self._attend(packed, layer, [*_UNUSED, *weights], qk_norm_epsilon=norms.epsilon)

    # -- without cuDNN ----------------------------------------------------------------------------------------------

    def patches(self, pixel_values: str, weight: Tensor, bias: Tensor, num_patches: int) -> str:
        graph = self.graph
        features, channels, patch, _ = weight.shape
        side = math.isqrt(num_patches)
        pixels, values = side * patch, channels * patch * patch
        # The pixels beyond the last whole patch are dropped, as a convolution without padding does.
        bounds = [graph.ints(0, 0), graph.ints(pixels, pixels), graph.ints(2, 3)]
        used = graph.node("Slice", [pixel_values, *bounds])
        cut = graph.node("Reshape", [used, graph.ints(-1, channels, side, patch, side, patch)])
        rows = graph.node("Transpose", [cut], perm=[0, 2, 4, 1, 3, 5])  # [T, rows, columns, channels, patch, patch]
        flat = graph.node("Reshape", [rows, graph.ints(-1, num_patches, values)])
        w = graph.weight(weight.name, self.precision.compute, (features, values), weight.blocks())
        y = graph.node("FusedMatMul", [flat, w], domain=MICROSOFT, transB=1)
        return self.add(y, self.vector(bias))

    def attention(self, qkv: tuple[str, str, str], num_heads: int) -> str:
        return self.graph.node("Attention", list(qkv), q_num_heads=num_heads, kv_num_heads=num_heads)

    def weighted_sum(self, rows: str, weights: str, output: str) -> None:
        graph = self.graph
        product = graph.node("MatMul", [graph.node("Unsqueeze", [weights, graph.ints(1)]), rows])  # [N, 1, D]
        graph.node("Reshape", [product, graph.ints(0, -1)], output=output)

    # -- products ---------------------------------------------------------------------------------------------------

    def linear(self, x: str, weights: Linear, head: bool = False) -> str:
        """FP8's operator adds the bias itself, which spares a kernel for each."""
        if head:
            self._vocab_size = weights.out_features
        parts, precision = weights.parts(), self.precision.head if head else self.precision.weights
        if len(parts) == 1 and weights.biases and _is_fp8(parts[0], precision):
            return self._fp8_linear(x, parts[0], self._bias(weights))
        return super().linear(x, weights, head)

    def gated(self, x: str, gate_up: Linear, width: int) -> str:
        assert not gate_up.biases, f"Bug: {gate_up.name} has a bias"
        gate, up = (
            self.linear(x, Linear(weight.name.removesuffix(".weight"), (weight,))) for weight in gate_up.weights
        )
        return self.multiply_gate(gate, up, width)

    def multiply_gate(self, gate: str, up: str, width: int) -> str:
        """silu(gate) * up in one node: `GatedRMSNorm`, which computes in fp32
        up / sqrt(mean(up^2) + epsilon) * scale * silu(gate).

        Epsilon is the square of a large scale, so that the norm is none: what comes out is off by mean(up^2) /
        (2 epsilon). In fp16, whose largest scale is 2^15, that is less than the result is rounded by as long as the
        root mean square of 512 neighbouring ups is below 700, or a single one of them below 16,000. A width without
        such groups takes two nodes: QuickGelu with alpha 1, which is silu, and a product.
        """
        graph, group = self.graph, math.gcd(width, GATE_GROUP)
        if group < LEAST_GATE_GROUP:
            return graph.node("Mul", [graph.node("QuickGelu", [gate], domain=MICROSOFT, alpha=1.0), up])
        factor = 2.0 ** (15 if self.precision.compute == "fp16" else 30)
        scale = graph.constant("gate_scale", np.full(group, factor, self._numpy_type))
        inputs = [up, scale, gate]
        return graph.node("GatedRMSNorm", inputs, domain=MICROSOFT, activation="silu", epsilon=factor**2)

    def add_linear_norm(
        self, residual: str, x: str, weights: Linear, weight: Tensor, bias: Tensor, epsilon: float
    ) -> tuple[str, str]:
        """One kernel for both sums and the norm."""
        product = self.linear(x, replace(weights, biases=()))
        normed, total = self.graph.value("normed"), self.graph.value("residual")
        inputs = [product, residual, self.vector(weight), self.vector(bias), self._bias(weights)]
        outputs = [normed, "", "", total]
        self.graph.multi_node("SkipLayerNormalization", inputs, outputs, domain=MICROSOFT, epsilon=epsilon)
        return normed, total

    def linear_gelu(self, x: str, weights: Linear) -> str:
        """One kernel for the bias and the function."""
        product = self.linear(x, replace(weights, biases=()))
        return self.graph.node("FastGelu", [product, self._bias(weights)], domain=MICROSOFT)

    def _product(self, x: str, part: Part, precision: str) -> str:
        return self._fp8_linear(x, part) if _is_fp8(part, precision) else super()._product(x, part, precision)

    def _block_size(self, part: IntegerPart) -> int:
        """32 where that makes the fused kernel possible, else the checkpoint's own, which reads fewer scales."""
        own = super()._block_size(part)
        fused = (
            self.precision.compute != "fp32"
            and part.zeros() is None
            and own % FUSED_BLOCK_SIZE == 0
            and part.in_features % FUSED_BLOCK_SIZE == 0
            and part.out_features % FUSED_ROWS[part.bits] == 0
        )
        return FUSED_BLOCK_SIZE if fused else own

    def _fp8_linear(self, x: str, part: Part, bias: str = "") -> str:
        """`MatMulBlockQuantizedFp8Weight` with one block, a whole row, and so one scale for each output feature.

        An input for which the checkpoint has one fixed scale is rounded to FP8 by the operator. One with a scale for
        each token stays as it is, which is nearer to full precision: rounding it would take eight more operators for
        each product, and the kernels multiply in the compute type either way.
        """
        n, k, input_scale = part.out_features, part.in_features, ""
        blocks: Iterable[Array]
        if isinstance(part, Fp8Part):
            blocks, scales = part.blocks(), part.scales()
            if part.activations == "tensor":
                value = np.array(part.input_scale, np.float32)
                input_scale = self.graph.constant(f"{part.name}.input_scale", value)
        else:
            assert isinstance(part, FloatPart), f"Bug: {part.name} is neither FP8 nor plain"
            scales = np.empty(n, dtype=np.float32)
            blocks = round_to_fp8(slabs(part.blocks(), k), scales)
        weight = self.graph.weight(f"{part.name}.weight_fp8", "fp8", (n, k), blocks)
        names = [x, weight, self.graph.weight(f"{part.name}.scales", "fp32", (n, 1), [scales]), input_scale, bias]
        while not names[-1]:
            names.pop()
        return self.graph.node("MatMulBlockQuantizedFp8Weight", names, domain=MICROSOFT, block_size=k)


def _is_fp8(part: Part, precision: str) -> bool:
    """Whether a part is stored in FP8, or plain and to be rounded to it."""
    return isinstance(part, Fp8Part) or (isinstance(part, FloatPart) and precision == "fp8")


class HostRowsCudaDialect(CudaDialect):
    """The token rows come from the host, for a GPU that has no room for their table."""

    def _token_rows(self, table: Tensor) -> str:
        return self.graph.input("inputs_embeds", self.precision.compute, [BATCH, "sequence", table.shape[1]])
