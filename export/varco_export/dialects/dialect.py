"""The operators that the networks are written in.

`vision.py`, `projector.py` and `decoder.py` describe each network once, against the methods of `Dialect`. What every
provider takes in the same form stands here; each dialect adds how it multiplies, attends and keeps its cache.

Values are names of `[B, S, features]` activations unless a method says otherwise: B rows, each a sequence of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from varco_export.dialects.linear import Linear, Part
from varco_export.precision import Precision
from varco_export.reading.tensor import Tensor
from varco_export.writing.graph import DTYPES, Graph, Shape
from varco_runtime.bundle.graph_contract import BATCH
from varco_runtime.dtypes import Array


@dataclass(frozen=True, slots=True)
class AttentionHeads:
    """The shape of the language model's attention."""

    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMS norms of each head of q and of k, before they turn: weights `[head_dim]`, the same for all heads."""

    query: Tensor
    key: Tensor
    epsilon: float


class Dialect(ABC):
    """Base of the dialects: what a network may be made of, and the form of it that all providers share.

    Args:
        graph: The graph to write.
        precision: The number formats to write it in.
    """

    head_dim_unit = 2
    """What the size of the language model's attention heads must be a multiple of: rotary positions turn pairs."""

    def __init__(self, graph: Graph, precision: Precision) -> None:
        self.graph = graph
        self.precision = precision
        self._numpy_type = DTYPES[precision.compute][1]

    # -- inputs and outputs -----------------------------------------------------------------------------------------

    def host_input(self, name: str, shape: Shape) -> str:
        """Declare a float input that the host fills, and return it for use in the compute type."""
        return self.graph.input(name, self.precision.compute, shape)

    def output(self, name: str, x: str, shape: Shape) -> None:
        """Declare x an output of the graph, in the compute type."""
        self.graph.node("Identity", [x], output=self.graph.output(name, self.precision.compute, shape))

    # -- small pieces -----------------------------------------------------------------------------------------------

    def vector(self, tensor: Tensor) -> str:
        """Return a small weight (norm, bias, position table) in the compute type, written once."""
        if self.graph.has_weight(tensor.name):
            return tensor.name
        return self.graph.weight(tensor.name, self.precision.compute, tensor.shape, tensor.blocks())

    def add(self, a: str, b: str) -> str:
        """Return a + b."""
        return self.graph.node("Add", [a, b])

    def linear(self, x: str, weights: Linear, head: bool = False) -> str:
        """Return x W^T + b, part by part (`Linear.parts`).

        Args:
            x: Activations `[..., in_features]`.
            weights: W and b.
            head: Whether plain weights get the precision of `lm_head` instead of the other linears'.
        """
        precision = self.precision.head if head else self.precision.weights
        products = [self._product(x, part, precision) for part in weights.parts()]
        y = products[0] if len(products) == 1 else self.graph.node("Concat", products, axis=-1)
        return self.graph.node("Add", [y, self._bias(weights)]) if weights.biases else y

    def _bias(self, weights: Linear) -> str:
        """Return the bias of all parts together."""
        name = f"{weights.name}.bias"
        return self.graph.weight(name, self.precision.compute, (weights.out_features,), [weights.bias()])

    def weighted_sum(self, rows: str, weights: str, output: str) -> None:
        """Sum rows `[N, 4, D]` times `weights` `[N, 4]` to the output `output` `[N, D]`."""
        scaled = self.graph.node("Mul", [rows, self.graph.node("Unsqueeze", [weights, self.graph.ints(-1)])])
        self.graph.node("ReduceSum", [scaled, self.graph.ints(1)], output=output, keepdims=0)

    @abstractmethod
    def _product(self, x: str, part: Part, precision: str) -> str:
        """Return x W^T of one part, in the format it is stored in, or for plain floats in the one asked for."""

    def gelu(self, x: str, approximate: str) -> str:
        """Return the GELU of x. `approximate` is `none` (the exact erf form) or `tanh`."""
        return self.graph.node("Gelu", [x], approximate=approximate)

    # -- vision -----------------------------------------------------------------------------------------------------

    def patches(self, pixel_values: str, weight: Tensor, bias: Tensor, num_patches: int) -> str:
        """Return a convolution whose stride is its kernel: `[T, 3, H, W]` to `[T, num_patches, features]`."""
        stride = list(weight.shape[2:])
        inputs = [pixel_values, self.vector(weight), self.vector(bias)]
        grid = self.graph.node(
            "Conv", inputs, kernel_shape=stride, strides=stride, pads=[0, 0, 0, 0]
        )  # [T, C, rows, columns]
        flat = self.graph.node("Reshape", [grid, self.graph.ints(0, weight.shape[0], num_patches)])
        return self.graph.node("Transpose", [flat], perm=[0, 2, 1])  # [T, P, C]

    def layer_norm(self, x: str, weight: Tensor, bias: Tensor, epsilon: float) -> str:
        """Return the layer norm of x over its last axis."""
        inputs = [x, self.vector(weight), self.vector(bias)]
        return self.graph.node("LayerNormalization", inputs, axis=-1, epsilon=epsilon)

    def add_linear_norm(
        self, residual: str, x: str, weights: Linear, weight: Tensor, bias: Tensor, epsilon: float
    ) -> tuple[str, str]:
        """Return the layer norm of residual + x W^T + b, and that sum itself."""
        total = self.add(residual, self.linear(x, weights))
        return self.layer_norm(total, weight, bias, epsilon), total

    def linear_gelu(self, x: str, weights: Linear) -> str:
        """Return the GELU, in its tanh form, of x W^T + b."""
        return self.gelu(self.linear(x, weights), "tanh")

    @abstractmethod
    def attention(self, qkv: tuple[str, str, str], num_heads: int) -> str:
        """Return attention in which every position sees every other, for q, k, v `[T, P, features]`."""

    # -- language model ---------------------------------------------------------------------------------------------

    def embeddings(self, table: Tensor) -> str:
        """Return what enters the first layer, `[B, S, hidden]`.

        `table` holds the token rows, for dialects whose graph looks them up.
        """
        return self.graph.input("inputs_embeds", self.precision.compute, [BATCH, "sequence", table.shape[1]])

    def rms_norm(self, x: str, weight: Tensor, epsilon: float) -> str:
        """Return the RMS norm of x over its last axis."""
        return self.graph.node("RMSNormalization", [x, self.vector(weight)], axis=-1, epsilon=epsilon)

    @abstractmethod
    def add_rms_norm(self, x: str, residual: str, weight: Tensor, epsilon: float) -> tuple[str, str]:
        """Return the norm of x + residual, and x + residual itself."""

    def gated(self, x: str, gate_up: Linear, width: int) -> str:
        """silu(gate) * up, where `gate_up` makes of x the gate and then up, each of `width` features."""
        both, gate, up = self.linear(x, gate_up), self.graph.value("gate"), self.graph.value("up")
        self.graph.multi_node("Split", [both, self.graph.ints(width, width)], [gate, up], axis=-1)
        silu = self.graph.node("Mul", [gate, self.graph.node("Sigmoid", [gate])])
        return self.graph.node("Mul", [silu, up])

    @abstractmethod
    def begin_cache(self, heads: AttentionHeads, cos_sin: tuple[Array, Array]) -> None:
        """Declare what `cached_attention` needs: lengths, a key and a value cache per layer, rotary tables.

        `cos_sin` are two tables `[max_context, head_dim / 2]`, position by position.
        """

    def _declare_caches(self, heads: AttentionHeads, length: int | str, cos_sin: tuple[Array, Array]) -> None:
        """Declare a key and a value cache per layer, of `length` positions, and write the rotary tables.

        Past and present are separate values of the graph; the runtime binds both to the same memory.
        """
        graph, dtype = self.graph, self.precision.cache or self.precision.compute
        shape: Shape = [BATCH, heads.num_key_value_heads, length, heads.head_dim]
        for layer in range(heads.num_layers):
            for kind in ("key", "value"):
                graph.input(f"past.{layer}.{kind}", dtype, shape)
                graph.output(f"present.{layer}.{kind}", dtype, shape)
        for name, table in zip(("cos_cache", "sin_cache"), cos_sin, strict=True):
            graph.weight(name, dtype, table.shape, [table])
        self._heads = heads

    @abstractmethod
    def cached_attention(self, qkv: str, layer: int, norms: HeadNorms | None = None) -> str:
        """Return causal attention to the cache so far, after rotating q and k and appending k and v to the layer's
        cache. `norms` come before the rotation.
        """

    def _split_heads(self, qkv: str) -> tuple[str, str, str]:
        """Return q, k and v, `[1, S, heads * head_dim]`, of the linear that makes all three."""
        graph, heads = self.graph, self._heads
        q, k, v = (graph.value(part) for part in "qkv")
        widths = [heads.num_attention_heads, heads.num_key_value_heads, heads.num_key_value_heads]
        sizes = graph.ints(*(number * heads.head_dim for number in widths))
        graph.multi_node("Split", [qkv, sizes], [q, k, v], axis=-1)
        return q, k, v

    @abstractmethod
    def last_tokens(self, x: str) -> str:
        """Return the last positions of x, or those that are asked for: the ones whose logits are computed."""

    @abstractmethod
    def logits(self, x: str) -> None:
        """Declare x the graph's output, in fp32."""
