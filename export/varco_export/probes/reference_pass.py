"""The exact model's answers to acceptance probes: the whole network in numpy and fp32, one layer in memory at a time.

This is a second description of the network, on purpose. The probes that come out of it judge the exporter's graphs; a
reference made from the same description (`vision.py`, `decoder.py`) would repeat its mistakes and confirm them. What
it shares with the rest is reading tensors and the runtime's tiles and packing plan, which transformers checks in tests,
as it checks this file. Source: transformers `modeling_siglip.py`, `modeling_llava_onevision.py`, `modeling_qwen2.py`,
`modeling_qwen3.py`.

All sequences go through a layer together, so that every weight is read, and rounded, once for all streams of
activations. There are up to four:

- "exact": with the weights as stored.
- "built": with the weights as a bundle's rounding leaves them, and with inputs cut off where a checkpoint's fixed scale
  ends. Cutting off is no noise: every kernel does the same, and it is part of the checkpoint.
- "noisy": "built" with the inputs of its linears rounded to int8 or FP8 besides.
- "disturbed": "built" with the inputs of its linears changed by a part in a million. The difference from "built" is
  what this model makes of the rounding of plain fp32 arithmetic.

Peak memory: one block of a weight, and the activations of all probes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.dialects.linear import Weight
from varco_export.probes.formats import LinearFormat
from varco_export.probes.reference_functions import attention, gelu_erf, gelu_tanh, layer_norm, rms_norm, rotate
from varco_export.quantized.integers import unpack
from varco_export.quantized.weights import Fp8Weight, IntegerWeight
from varco_export.reading.tensor import Tensor
from varco_runtime.dtypes import Array
from varco_runtime.probes.file import DISTURBANCE

VISION, PROJECTOR, HEAD = "vision_tower.", "multi_modal_projector", "lm_head"
"""How the names of the linears of a network begin."""
ROWS = "language_model.embed_tokens"
"""The token rows, where they are rounded."""
BLOCK_BYTES = 8 << 20
"""Of a weight at a time, as stored."""

Advance = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Logits:
    """Logits `[num_logits, vocab]` of one sequence; `built` and `noisy` are None where they would be the one before.

    `others`: those of the last layer in other formats, by the names that were asked for.
    """

    exact: Array
    disturbed: Array
    built: Array | None = None
    noisy: Array | None = None
    others: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sequence:
    """One probe: `ids` `[n]`, the rows that stand for its image tokens, and how many last positions get logits.

    `built_tokens`: the same rows as a vision tower of rounded weights makes them, None where it has none.
    """

    ids: Array
    image_tokens: Array | None
    num_logits: int
    built_tokens: Array | None = None


class ReferencePass:
    """The network of one checkpoint. `formats` says which of its linears the graphs of a bundle hold how."""

    def __init__(self, checkpoint: Checkpoint, formats: Mapping[str, LinearFormat]) -> None:
        self._checkpoint = checkpoint
        self._formats = formats

    # -- vision and projector ---------------------------------------------------------------------------------------

    def patch_features(self, pixel_values: Array, advance: Advance) -> dict[str, Array]:
        """Tiles `[T, 3, S, S]` to the vision tower's features `[T, P, C]`, "exact" and, where it rounds, "built".

        `advance` is called after each layer.
        """
        config = self._checkpoint.config.vision
        name = "vision_tower.embeddings"
        kernel, side = self._vector(f"{name}.patch_embedding.weight"), config.image_size // config.patch_size
        pixels = pixel_values[:, :, : side * config.patch_size, : side * config.patch_size]
        num_tiles = len(pixels)
        pixels = pixels.reshape(num_tiles, 3, side, config.patch_size, side, config.patch_size)
        patches = pixels.transpose(0, 2, 4, 1, 3, 5).reshape(num_tiles, side * side, -1)  # [T, P, 3 * patch * patch]
        x = patches @ kernel.reshape(len(kernel), -1).T + self._vector(f"{name}.patch_embedding.bias")
        x += self._vector(f"{name}.position_embedding.weight")
        streams = {"exact": x}
        if any(one.rounds_weight for linear, one in self._formats.items() if linear.startswith(VISION)):
            streams["built"] = x.copy()
        for index in range(config.num_hidden_layers):
            self._vision_layer(streams, f"vision_tower.encoder.layers.{index}")
            advance()
        return streams

    def _vision_layer(self, streams: dict[str, Array], layer: str) -> None:
        """Add the layer's two halves to every stream `[T, P, C]`, in place."""
        config = self._checkpoint.config.vision
        normed = self._layer_norms(streams, f"{layer}.layer_norm1", config.layer_norm_eps)
        projected = {part: self._biased(normed, f"{layer}.self_attn.{part}_proj") for part in "qkv"}
        for name in streams:
            q, k, v = (projected[part].pop(name) for part in "qkv")
            for one in range(len(q)):
                normed[name][one] = attention(q[one], k[one], v[one], config.num_attention_heads)
        self._add(streams, self._biased(normed, f"{layer}.self_attn.out_proj"))
        normed = self._layer_norms(streams, f"{layer}.layer_norm2", config.layer_norm_eps)
        hidden = self._biased(normed, f"{layer}.mlp.fc1")
        self._add(streams, self._biased({name: gelu_tanh(x) for name, x in hidden.items()}, f"{layer}.mlp.fc2"))

    def image_features(self, patch_features: dict[str, Array]) -> dict[str, Array]:
        """`[T, P, C]` to the language model's width `[T, P, D]`, stream by stream."""
        streams = dict(patch_features)
        if any(one.rounds_weight for linear, one in self._formats.items() if linear.startswith(PROJECTOR)):
            streams.setdefault("built", streams["exact"])
        hidden = self._biased(streams, f"{PROJECTOR}.linear_1")
        return self._biased({name: gelu_erf(x) for name, x in hidden.items()}, f"{PROJECTOR}.linear_2")

    def newline(self) -> Array:
        """The vector `[D]` at the end of each row of a picture."""
        return self._vector("image_newline")

    def _biased(self, streams: dict[str, Array], name: str) -> dict[str, Array]:
        """x W^T + b for each stream `[..., K]`."""
        flat = {stream: x.reshape(-1, x.shape[-1]) for stream, x in streams.items()}
        products, bias = self._linears(flat, name), self._vector(f"{name}.bias")
        for y in products.values():
            y += bias
        return {stream: products[stream].reshape(*x.shape[:-1], -1) for stream, x in streams.items()}

    def _layer_norms(self, streams: dict[str, Array], name: str, epsilon: float) -> dict[str, Array]:
        weight, bias = self._vector(f"{name}.weight"), self._vector(f"{name}.bias")
        return {stream: layer_norm(x, weight, bias, epsilon) for stream, x in streams.items()}

    # -- language model ---------------------------------------------------------------------------------------------

    def logits(
        self,
        sequences: list[Sequence],
        image_token_id: int,
        advance: Advance,
        heads: Mapping[str, LinearFormat] | None = None,
    ) -> list[Logits]:
        """Per sequence the logits of its last positions.

        `advance` is called after each layer and after the head. `heads`: formats that the last layer is tried in
        besides, behind the layers as the bundle has them.
        """
        config = self._checkpoint.config.text
        x = np.concatenate([self._embed(one.ids, one.image_tokens, image_token_id) for one in sequences])
        streams = {"exact": x}  # [N, D], probe after probe
        sees = any(one.built_tokens is not None for one in sequences)
        decoder = [one for name, one in self._formats.items() if not name.startswith((VISION, PROJECTOR))]
        if sees or any(one.rounds_weight or one.cuts_off for one in decoder):
            tokens = [one.image_tokens if one.built_tokens is None else one.built_tokens for one in sequences]
            pairs, rounding = zip(sequences, tokens, strict=True), self._formats.get(ROWS)
            given = [self._embed(one.ids, own, image_token_id, rounding) for one, own in pairs]
            streams["built"] = np.concatenate(given)
        start = streams.get("built", x)
        if any(one.activations != "float" for one in decoder):
            streams["noisy"] = start.copy()
        streams["disturbed"] = start.copy()
        ends = np.cumsum([len(one.ids) for one in sequences])
        spans = [slice(end - len(one.ids), end) for one, end in zip(sequences, ends, strict=True)]
        for index in range(config.num_hidden_layers):
            self._decoder_layer(streams, spans, f"language_model.layers.{index}")
            advance()
        last = [np.arange(span.stop - one.num_logits, span.stop) for one, span in zip(sequences, spans, strict=True)]
        norm, rows = self._vector("language_model.norm.weight"), np.concatenate(last)
        normed = {name: rms_norm(x[rows], norm, config.rms_norm_eps) for name, x in streams.items()}
        as_built = normed.get("noisy", normed.get("built", normed["exact"]))
        logits = self._linears(normed, HEAD, {name: (as_built, format) for name, format in (heads or {}).items()})
        advance()
        starts = np.cumsum([one.num_logits for one in sequences])[:-1]
        split = {name: np.split(rows, starts) for name, rows in logits.items()}
        return [
            Logits(
                **{name: parts[index] for name, parts in split.items() if name in streams},
                others={name: parts[index] for name, parts in split.items() if name not in streams},
            )
            for index in range(len(sequences))
        ]

    def _embed(
        self, ids: Array, image_tokens: Array | None, image_token_id: int, format: LinearFormat | None = None
    ) -> Array:
        table = self._checkpoint.tensor("language_model.embed_tokens.weight")
        rows = np.empty((len(ids), table.shape[1]), np.float32)
        is_image = ids == image_token_id
        for token in np.unique(ids[~is_image]):
            rows[ids == token] = table.rows(int(token), int(token) + 1)
        if format is not None:
            rows = format.weight(rows)
        if image_tokens is not None:
            rows[is_image] = image_tokens
        return rows

    def _decoder_layer(self, streams: dict[str, Array], spans: list[slice], layer: str) -> None:
        """Add the layer's two halves to every stream `[N, D]`, in place."""
        config = self._checkpoint.config.text
        norm = self._vector(f"{layer}.input_layernorm.weight")
        normed = {name: rms_norm(x, norm, config.rms_norm_eps) for name, x in streams.items()}
        projected = {}
        for part in "qkv":
            projected[part] = self._linears(normed, f"{layer}.self_attn.{part}_proj")
            if config.qkv_bias:
                bias = self._vector(f"{layer}.self_attn.{part}_proj.bias")
                for y in projected[part].values():
                    y += bias
            if config.qk_norm and part != "v":
                norm = self._vector(f"{layer}.self_attn.{part}_norm.weight")
                for y in projected[part].values():
                    heads = y.reshape(len(y), -1, config.head_dim)
                    heads[:] = rms_norm(heads, norm, config.rms_norm_eps)
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

    def _linears(
        self, streams: dict[str, Array], linear: str, others: Mapping[str, tuple[Array, LinearFormat]] | None = None
    ) -> dict[str, Array]:
        """x W^T for each stream, by its name, and for each of `others`: an input and the format it is multiplied in."""
        weight, format = self._checkpoint.weight(linear), self._formats.get(linear, LinearFormat())
        inputs = {name: _input_of(name, x, format) for name, x in streams.items()}
        variants = {name: (other.input(x), other) for name, (x, other) in (others or {}).items()}
        sizes = {name: len(x) for name, x in inputs.items()} | {name: len(x) for name, (x, _) in variants.items()}
        outputs = {name: np.empty((size, weight.shape[0]), np.float32) for name, size in sizes.items()}
        start = 0
        for exact in weight_rows(weight):
            rows = slice(start, start + len(exact))
            rounded = format.weight(exact) if len(streams) > 1 else exact
            for name, x in inputs.items():
                np.matmul(x, (exact if name == "exact" else rounded).T, out=outputs[name][:, rows])
            for name, (x, other) in variants.items():
                np.matmul(x, other.weight(exact).T, out=outputs[name][:, rows])
            start = rows.stop
        return outputs


def _input_of(stream: str, x: Array, format: LinearFormat) -> Array:
    """What a linear of a format multiplies in a stream."""
    if stream == "exact":
        return x
    if stream == "noisy":
        return format.input(x)
    return _disturbed(format.bounded(x)) if stream == "disturbed" else format.bounded(x)


def _disturbed(x: Array) -> Array:
    """x `[n, k]` with every entry larger or smaller by a part in a million, always the same ones."""
    random = np.random.RandomState(x.shape[1])  # whose stream is frozen for all versions of numpy
    along, across = (random.randint(0, 2, size).astype(np.float32) * 2 - 1 for size in x.shape)
    disturbed: Array = x * (1 + np.float32(DISTURBANCE) * along[:, None] * across)
    return disturbed


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
