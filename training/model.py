"""The network as the trainer runs it: LLaVA-OneVision in bf16, matrix products by hand, pointwise parts compiled.

Weights live in one dictionary under the names a Hugging Face checkpoint has on disk, so saving them is copying them.
Attention is two batched products around a compiled softmax, which on a CPU beats the built-in attention two to six
times. Masters and the residual stream are fp32, everything else is bf16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from training import tiles

Tensor = torch.Tensor
Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of the network; head dimensions are 64 everywhere."""

    vision_hidden: int = 192
    vision_layers: int = 5
    vision_mlp: int = 576
    hidden: int = 256
    layers: int = 4
    mlp: int = 640
    kv_heads: int = 2
    vocab: int = 640
    rope_theta: float = 10000.0

    @property
    def heads(self) -> int:
        return self.hidden // 64

    @property
    def vision_heads(self) -> int:
        return self.vision_hidden // 64


VISION = "vision_tower.vision_model."
DECODER = "language_model.model."
MIDDLE = 2  # after this many decoder layers a training-only head looks at the picture's tokens
POINTER = 2  # in this decoder layer two heads are shown where to look


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the checkpoint."""
    v, d, kv = sizes.vision_hidden, sizes.hidden, sizes.kv_heads * 64
    table: dict[str, tuple[int, ...]] = {
        VISION + "embeddings.patch_embedding.weight": (v, 3, tiles.PATCH_PX, tiles.PATCH_PX),
        VISION + "embeddings.patch_embedding.bias": (v,),
        VISION + "embeddings.position_embedding.weight": (tiles.PATCHES, v),
        VISION + "post_layernorm.weight": (v,),
        VISION + "post_layernorm.bias": (v,),
        "multi_modal_projector.linear_1.weight": (d, v),
        "multi_modal_projector.linear_1.bias": (d,),
        "multi_modal_projector.linear_2.weight": (d, d),
        "multi_modal_projector.linear_2.bias": (d,),
        "image_newline": (d,),
        DECODER + "embed_tokens.weight": (sizes.vocab, d),
        DECODER + "norm.weight": (d,),
        "language_model.lm_head.weight": (sizes.vocab, d),
    }
    for i in range(sizes.vision_layers):
        layer = f"{VISION}encoder.layers.{i}."
        for norm in ("layer_norm1", "layer_norm2"):
            table |= {f"{layer}{norm}.weight": (v,), f"{layer}{norm}.bias": (v,)}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            table |= {f"{layer}self_attn.{name}.weight": (v, v), f"{layer}self_attn.{name}.bias": (v,)}
        table |= {f"{layer}mlp.fc1.weight": (sizes.vision_mlp, v), f"{layer}mlp.fc1.bias": (sizes.vision_mlp,)}
        table |= {f"{layer}mlp.fc2.weight": (v, sizes.vision_mlp), f"{layer}mlp.fc2.bias": (v,)}
    for i in range(sizes.layers):
        layer = f"{DECODER}layers.{i}."
        table |= {f"{layer}input_layernorm.weight": (d,), f"{layer}post_attention_layernorm.weight": (d,)}
        for name, rows in (("q_proj", d), ("k_proj", kv), ("v_proj", kv)):
            table |= {f"{layer}self_attn.{name}.weight": (rows, d), f"{layer}self_attn.{name}.bias": (rows,)}
        table |= {f"{layer}self_attn.o_proj.weight": (d, d), f"{layer}mlp.down_proj.weight": (d, sizes.mlp)}
        table |= {f"{layer}mlp.gate_proj.weight": (sizes.mlp, d), f"{layer}mlp.up_proj.weight": (sizes.mlp, d)}
    return table


def initial(sizes: Sizes, seed: int) -> Weights:
    """Return fresh weights."""
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    depth = 1 / math.sqrt(2 * max(sizes.layers, sizes.vision_layers))
    for name, shape in shapes(sizes).items():
        if len(shape) == 1 and name != "image_newline":
            weights[name] = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
            continue
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
        scale = 0.02 if "embed_tokens" in name or "position" in name or "newline" in name else 0.7 / math.sqrt(fan_in)
        if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight")):
            scale *= depth
        weights[name] = torch.randn(shape, generator=generator) * scale
    weights[DECODER + "embed_tokens.weight"] *= 10
    return weights


# --- pointwise parts, compiled ----------------------------------------------------------------------------------------


def _pixels(patches: Tensor) -> Tensor:
    return (patches.float() / 127.5 - 1).bfloat16()


def _add_layer_norm(x: Tensor, change: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    x = x + change.float()
    return x, F.layer_norm(x, (x.shape[-1],), weight, bias, 1e-6).bfloat16()


def _add_rms_norm(x: Tensor, change: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    x = x + change.float()
    return x, (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight).bfloat16()


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x.float(), approximate="tanh").bfloat16()


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x.float()).bfloat16()


def _swiglu(x: Tensor) -> Tensor:
    gate, up = x.float().chunk(2, -1)
    return (F.silu(gate) * up).bfloat16()


def _softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores.float() * 0.125, -1).bfloat16()


def _softmax_biased(scores: Tensor, bias: Tensor) -> Tensor:
    return torch.softmax(scores.float() * 0.125 + bias.float(), -1).bfloat16()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = x.float()
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat((-second, first), -1) * sin).bfloat16()


def _compile(function: Any) -> Any:
    """Return the function, compiled when it is first called: importing this module stays cheap."""

    @cache
    def compiled() -> Any:
        return torch.compile(function, dynamic=True)

    return lambda *arguments: compiled()(*arguments)


pixels, add_layer_norm, add_rms_norm = _compile(_pixels), _compile(_add_layer_norm), _compile(_add_rms_norm)
gelu_tanh, gelu, swiglu, rotate = _compile(_gelu_tanh), _compile(_gelu), _compile(_swiglu), _compile(_rotate)
softmax, softmax_biased = _compile(_softmax), _compile(_softmax_biased)


# --- the networks -----------------------------------------------------------------------------------------------------


class Network:
    """One forward pass: bf16 copies of the weights, made once and differentiable."""

    def __init__(self, weights: Weights, sizes: Sizes) -> None:
        self.sizes = sizes
        self.full = weights
        self.half = {name: tensor.bfloat16() for name, tensor in weights.items() if tensor.dim() > 1}

    def linear(self, x: Tensor, name: str) -> Tensor:
        """Apply one linear layer."""
        bias = self.full.get(f"{name}.bias")
        return F.linear(x, self.half[f"{name}.weight"], None if bias is None else bias.bfloat16())

    def joined(self, x: Tensor, prefix: str, names: tuple[str, ...]) -> Tensor:
        """Apply several linear layers to the same input as one product."""
        weight = torch.cat([self.half[f"{prefix}{name}.weight"] for name in names])
        biases = [self.full[f"{prefix}{name}.bias"] for name in names if f"{prefix}{name}.bias" in self.full]
        return F.linear(x, weight, torch.cat(biases).bfloat16() if biases else None)

    def encode(self, patches: Tensor) -> Tensor:
        """Return projected patches [T, 64, hidden] of uint8 patches [T, 64, 588]."""
        sizes, count = self.sizes, len(patches)
        embedding = VISION + "embeddings.patch_embedding"
        weight = self.half[f"{embedding}.weight"].flatten(1)
        change = F.linear(pixels(patches), weight, self.full[f"{embedding}.bias"].bfloat16())
        x = self.full[VISION + "embeddings.position_embedding.weight"].expand(count, -1, -1)
        for i in range(sizes.vision_layers):
            layer = f"{VISION}encoder.layers.{i}."
            x, h = add_layer_norm(x, change, *self._norm(layer + "layer_norm1"))
            qkv = self.joined(h, layer + "self_attn.", ("q_proj", "k_proj", "v_proj"))
            qkv = qkv.view(count, tiles.PATCHES, 3, sizes.vision_heads, 64).permute(2, 0, 3, 1, 4)
            q, k, v = (part.reshape(-1, tiles.PATCHES, 64) for part in qkv)  # [T * heads, 64, 64]
            mixed = torch.bmm(softmax(torch.bmm(q, k.transpose(1, 2))), v)
            mixed = mixed.view(count, sizes.vision_heads, tiles.PATCHES, 64).transpose(1, 2).flatten(2)
            x, h = add_layer_norm(
                x, self.linear(mixed, layer + "self_attn.out_proj"), *self._norm(layer + "layer_norm2")
            )
            change = self.linear(gelu_tanh(self.linear(h, layer + "mlp.fc1")), layer + "mlp.fc2")
        h = (x + change.float()).bfloat16()
        return self.linear(gelu(self.linear(h, "multi_modal_projector.linear_1")), "multi_modal_projector.linear_2")

    def _norm(self, name: str) -> tuple[Tensor, Tensor]:
        return self.full[f"{name}.weight"], self.full[f"{name}.bias"]

    def pack(self, features: Tensor, packing: Tensor) -> Tensor:
        """Return the picture's tokens [B, N, hidden] of patches [B, M, hidden] and weights [B, N, M + 1]."""
        newline = self.full["image_newline"].bfloat16().expand(len(features), 1, -1)
        return torch.bmm(packing, torch.cat([features, newline], 1))

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings of token ids."""
        return F.embedding(ids, self.full[DECODER + "embed_tokens.weight"])

    def decode(self, x: Tensor, positions: Tensor, bias: Tensor, answers: int) -> tuple[Tensor, Tensor, Tensor]:
        """Run the decoder over embeddings [B, L, hidden].

        Returns the normed states of the last `answers` positions, the normed states in the middle, and the attention of
        the pointer layer from the last `answers` positions, [B, kv_heads, 2, answers, L].
        """
        sizes, (batch, length, _) = self.sizes, x.shape
        half = torch.arange(32, dtype=torch.float32) / 32
        angles = positions[..., None] * sizes.rope_theta**-half
        angles = torch.cat([angles, angles], -1)[:, :, None]  # [B, L, 1, 64]
        cos, sin = angles.cos(), angles.sin()
        groups, shared = sizes.kv_heads, sizes.heads // sizes.kv_heads
        change = torch.zeros((), dtype=torch.bfloat16).expand_as(x)
        middle = pointer = x
        for i in range(sizes.layers):
            layer, last = f"{DECODER}layers.{i}.", i == sizes.layers - 1
            x, h = add_rms_norm(x, change, self.full[layer + "input_layernorm.weight"])
            if i == MIDDLE:
                middle = h
            kv = self.joined(h, layer + "self_attn.", ("k_proj", "v_proj")).view(batch, length, 2 * groups, 64)
            asking = h[:, -answers:] if last else h
            rows = asking.shape[1]
            q = self.linear(asking, layer + "self_attn.q_proj").view(batch, rows, groups * shared, 64)
            q = rotate(q, cos[:, -rows:], sin[:, -rows:]).view(batch, rows, groups, shared, 64)
            k = rotate(kv[:, :, :groups], cos, sin).permute(0, 2, 3, 1).reshape(batch * groups, 64, length)
            v = kv[:, :, groups:].transpose(1, 2).reshape(batch * groups, length, 64)
            q = q.permute(0, 2, 3, 1, 4).reshape(batch * groups, shared * rows, 64)
            scores = torch.bmm(q, k).view(batch, groups * shared, rows, length)
            probabilities = softmax_biased(scores, bias[:, :, -rows:])
            if i == POINTER:
                pointer = probabilities.view(batch, groups, shared, rows, length)[:, :, :, -answers:]
            mixed = torch.bmm(probabilities.view(batch * groups, shared * rows, length), v)
            mixed = mixed.view(batch, groups, shared, rows, 64).permute(0, 3, 1, 2, 4).reshape(batch, rows, -1)
            change = self.linear(mixed, layer + "self_attn.o_proj")
            x, h = add_rms_norm(x[:, -rows:], change, self.full[layer + "post_attention_layernorm.weight"])
            change = self.linear(
                swiglu(self.joined(h, layer + "mlp.", ("gate_proj", "up_proj"))), layer + "mlp.down_proj"
            )
        _, h = add_rms_norm(x, change, self.full[DECODER + "norm.weight"])
        return h, middle, pointer

    def logits(self, h: Tensor) -> Tensor:
        """Return the logits of normed states, fp32."""
        return F.linear(h, self.half["language_model.lm_head.weight"]).float()


def patchify(pixels_: Tensor) -> Tensor:
    """Return the patches [T, 64, 588] of tiles [T, 114, 114, 3], channels first as the convolution sees them."""
    side, px = tiles.SIDE, tiles.PATCH_PX
    kept = pixels_[:, : side * px, : side * px].view(-1, side, px, side, px, 3)
    return kept.permute(0, 1, 3, 5, 2, 4).reshape(-1, tiles.PATCHES, 3 * px * px)


def attention_bias(segments: Tensor) -> Tensor:
    """Return what is added to the scores, [B, 1, L, L] bf16: 0 where a token may look, else -30000.

    Segment 0 is the picture, 1, 2, ... are questions that see it and themselves, -1 is padding.
    """
    length = segments.shape[1]
    q, k = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = causal & ((k == 0) | (k == q))
    allowed |= torch.eye(length, dtype=torch.bool)
    return torch.where(allowed, 0.0, -30000.0).bfloat16()[:, None]
