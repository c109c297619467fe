"""The exact model's answers to acceptance probes: the whole network in numpy and fp32, one layer in memory at a time.

This is a second description of the network, on purpose. The probes that come out of it judge the exporter's graphs; a
reference made from the same description (`vision.py`, `decoder.py`) would repeat its mistakes and confirm them. What
it shares with the rest is reading tensors and the runtime's tiles and packing plan, which transformers checks in tests,
as it checks this file. Source: transformers `modeling_siglip.py`, `modeling_llava_onevision.py`, `modeling_qwen2.py`.

All sequences go through a layer together, so that every weight is read once. A decoder in a coarser format has up to
three streams of activations: with the weights as stored ("exact"); as rounding leaves them, and with inputs cut off
where a checkpoint's fixed scale ends ("built"); and with the inputs of its linears rounded besides ("noisy"), which
tells how much such rounding does to this model. Cutting off is no noise: every kernel does the same, and it is part of
the checkpoint. Peak memory: one block of a weight, and the activations of all probes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.dialects.linear import Weight
from varco_export.probes.formats import LinearFormat
from varco_export.probes.reference_functions import attention, gelu_erf, gelu_tanh, rms_norm, rotate
from varco_export.quantized.integers import unpack
from varco_export.quantized.weights import Fp8Weight, IntegerWeight
from varco_export.reading.tensor import Tensor

BLOCK_BYTES = 8 << 20
"""Of a weight at a time, as stored."""

Array = np.ndarray[Any, Any]
Advance = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Logits:
    """Logits `[num_logits, vocab]` of one sequence; None where a stream would be the one before."""

    exact: Array
    built: Array | None = None
    noisy: Array | None = None


@dataclass(frozen=True, slots=True)
class Sequence:
    """One probe: `ids` `[n]`, the rows that stand for its image tokens, and how many last positions get logits."""

    ids: Array
    image_tokens: Array | None
    num_logits: int


class ReferencePass:
    """The network of one checkpoint. `formats` says which of the decoder's linears a graph holds how."""

    def __init__(self, checkpoint: Checkpoint, formats: Mapping[str, LinearFormat]) -> None:
        self._checkpoint = checkpoint
        self._formats = formats

    # -- vision and projector ---------------------------------------------------------------------------------------

    def patch_features(self, pixel_values: Array, advance: Advance) -> Array:
        """Tiles `[T, 3, S, S]` to the vision tower's features `[T, P, C]`; `advance` is called after each layer."""
        config = self._checkpoint.config.vision
        name = "vision_tower.embeddings"
        kernel, side = self._vector(f"{name}.patch_embedding.weight"), config.image_size // config.patch_size
        pixels = pixel_values[:, :, : side * config.patch_size, : side * config.patch_size]
        num_tiles = len(pixels)
        pixels = pixels.reshape(num_tiles, 3, side, config.patch_size, side, config.patch_size)
        patches = pixels.transpose(0, 2, 4, 1, 3, 5).reshape(num_tiles, side * side, -1)  # [T, P, 3 * patch * patch]
        x = patches @ kernel.reshape(len(kernel), -1).T + self._vector(f"{name}.patch_embedding.bias")
        x += self._vector(f"{name}.position_embedding.weight")
        for index in range(config.num_hidden_layers):
            layer = f"vision_tower.encoder.layers.{index}"
            h = self._layer_norm(x, f"{layer}.layer_norm1", config.layer_norm_eps)
            q, k, v = (self._linear(h, f"{layer}.self_attn.{part}_proj") for part in "qkv")
            for one in range(num_tiles):
                h[one] = attention(q[one], k[one], v[one], config.num_attention_heads)
            x += self._linear(h, f"{layer}.self_attn.out_proj")
            h = self._layer_norm(x, f"{layer}.layer_norm2", config.layer_norm_eps)
            x += self._linear(gelu_tanh(self._linear(h, f"{layer}.mlp.fc1")), f"{layer}.mlp.fc2")
            advance()
        return x

    def image_features(self, patch_features: Array) -> Array:
        """`[T, P, C]` to the language model's width `[T, P, D]`."""
        hidden = self._linear(patch_features, "multi_modal_projector.linear_1")
        return self._linear(gelu_erf(hidden), "multi_modal_projector.linear_2")

    def newline(self) -> Array:
        """The vector `[D]` at the end of each row of a picture."""
        return self._vector("image_newline")

    def _linear(self, x: Array, name: str) -> Array:
        y = self._linears({"exact": x.reshape(-1, x.shape[-1])}, name)["exact"]
        y += self._vector(f"{name}.bias")
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def _layer_norm(self, x: Array, name: str, epsilon: float) -> Array:
        mean = x.mean(axis=-1, keepdims=True)
        centred = x - mean
        centred /= np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + np.float32(epsilon))
        normed: Array = centred * self._vector(f"{name}.weight") + self._vector(f"{name}.bias")
        return normed

    # -- language model ---------------------------------------------------------------------------------------------

    def logits(self, sequences: list[Sequence], image_token_id: int, advance: Advance) -> list[Logits]:
        """Per sequence the logits of its last positions.

        `advance` is called after each layer and after the head.
        """
        config = self._checkpoint.config.text
        x = np.concatenate([self._embed(one, image_token_id) for one in sequences])  # [N, D], probe after probe
        streams = {"exact": x}
        if any(one.rounds_weight or one.cuts_off for one in self._formats.values()):
            streams["built"] = x.copy()
        if any(one.activations != "float" for one in self._formats.values()):
            streams["noisy"] = x.copy()
        ends = np.cumsum([len(one.ids) for one in sequences])
        spans = [slice(end - len(one.ids), end) for one, end in zip(sequences, ends, strict=True)]
        for index in range(config.num_hidden_layers):
            self._decoder_layer(streams, spans, f"language_model.layers.{index}")
            advance()
        last = [np.arange(span.stop - one.num_logits, span.stop) for one, span in zip(sequences, spans, strict=True)]
        norm, rows = self._vector("language_model.norm.weight"), np.concatenate(last)
        normed = {name: rms_norm(x[rows], norm, config.rms_norm_eps) for name, x in streams.items()}
        logits = self._linears(normed, "lm_head")
        advance()
        starts = np.cumsum([one.num_logits for one in sequences])[:-1]
        split = {name: np.split(rows, starts) for name, rows in logits.items()}
        return [Logits(**dict(zip(split, parts, strict=True))) for parts in zip(*split.values(), strict=True)]

    def _embed(self, sequence: Sequence, image_token_id: int) -> Array:
        table = self._checkpoint.tensor("language_model.embed_tokens.weight")
        rows = np.empty((len(sequence.ids), table.shape[1]), np.float32)
        is_image = sequence.ids == image_token_id
        for token in np.unique(sequence.ids[~is_image]):
            rows[sequence.ids == token] = table.rows(int(token), int(token) + 1)
        if sequence.image_tokens is not None:
            rows[is_image] = sequence.image_tokens
        return rows

    def _decoder_layer(self, streams: dict[str, Array], spans: list[slice], layer: str) -> None:
        """Add the layer's two halves to every stream `[N, D]`, in place."""
        config = self._checkpoint.config.text
        norm = self._vector(f"{layer}.input_layernorm.weight")
        normed = {name: rms_norm(x, norm, config.rms_norm_eps) for name, x in streams.items()}
        projected = {}
        for part in "qkv":
            projected[part] = self._linears(normed, f"{layer}.self_attn.{part}_proj")
            bias = self._vector(f"{layer}.self_attn.{part}_proj.bias")
            for y in projected[part].values():
                y += bias
        attended = {}
        for name in streams:
            q, k, v = (projected[part].pop(name) for part in "qkv")
            for span in spans:
                positions = np.arange(span.stop - span.start)
                one_q, one_k = (rotate(one[span], positions, config.head_dim, config.rope_theta) for one in (q, k))
                q[span] = attention(one_q, one_k, v[span], config.num_attention_heads, causal=True)
            attended[name] = q
        self._add(streams, self._linears(attended, f"{layer}.self_attn.o_proj"))

        norm = self._vector(f"{layer}.post_attention_layernorm.weight")
        normed = {name: rms_norm(x, norm, config.rms_norm_eps) for name, x in streams.items()}
        gates = self._linears(normed, f"{layer}.mlp.gate_proj")
        ups = self._linears(normed, f"{layer}.mlp.up_proj")
        for name, up in ups.items():
            gate = gates.pop(name)
            up *= gate
            up *= np.float32(0.5) + np.float32(0.5) * np.tanh(gate * np.float32(0.5))  # sigmoid(gate)
        self._add(streams, self._linears(ups, f"{layer}.mlp.down_proj"))

    @staticmethod
    def _add(streams: dict[str, Array], increments: dict[str, Array]) -> None:
        for name, x in streams.items():
            x += increments[name]

    # -- weights ----------------------------------------------------------------------------------------------------

    def _vector(self, name: str) -> Array:
        return self._checkpoint.tensor(name).read().astype(np.float32)

    def _linears(self, streams: dict[str, Array], linear: str) -> dict[str, Array]:
        """x W^T for each stream, by its name."""
        weight, format = self._checkpoint.weight(linear), self._formats.get(linear, LinearFormat())
        made = {"built": format.bounded, "noisy": format.input}
        inputs = {name: made[name](x) if name in made else x for name, x in streams.items()}
        outputs = {name: np.empty((len(x), weight.shape[0]), np.float32) for name, x in streams.items()}
        start = 0
        for exact in weight_rows(weight):
            rows = slice(start, start + len(exact))
            rounded = format.weight(exact) if len(streams) > 1 else exact
            for name, x in inputs.items():
                np.matmul(x, (exact if name == "exact" else rounded).T, out=outputs[name][:, rows])
            start = rows.stop
        return outputs


def weight_rows(weight: Weight) -> Iterator[Array]:
    """Blocks of rows `[n, in_features]` of a linear's weight in fp32, dequantised where the checkpoint is quantised."""
    if isinstance(weight, Tensor):
        for block in weight.blocks(BLOCK_BYTES):
            yield block.astype(np.float32)
    elif isinstance(weight, Fp8Weight):
        scales = np.broadcast_to(weight.scales(), (weight.shape[0],))
        start = 0
        for block in weight.values.blocks(BLOCK_BYTES):
            yield block.astype(np.float32) * scales[start : start + len(block), None]
            start += len(block)
    else:
        yield from _integer_rows(weight)


def _integer_rows(weight: IntegerWeight) -> Iterator[Array]:
    """(value - zero) * scale, each input feature by its group, back in the order of the input."""
    assert weight.rows is None, f"Bug: {weight.name} has been permuted for a graph"
    assert not weight.sorted_input, f"Bug: {weight.name} has been permuted for a graph"
    scales, zeros = weight.scales(), weight.zeros()  # [N, groups]
    groups = np.arange(weight.shape[1]) // weight.group_size
    start = 0
    for block in weight.packed_blocks():
        rows = slice(start, start + len(block))
        values = unpack(block, weight.bits, weight.shape[1]).astype(np.float32)
        values -= weight.half if zeros is None else zeros[rows][:, groups]
        values *= scales[rows][:, groups]
        if weight.order is not None:
            in_order = np.empty_like(values)
            in_order[:, weight.order] = values
            values = in_order
        yield values
        start += len(block)
