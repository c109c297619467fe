"""The network's functions in numpy and fp32, as `reference_pass.py` puts them together.

Source: transformers `modeling_siglip.py`, `modeling_llava_onevision.py`, `modeling_qwen2.py`.
"""

from __future__ import annotations

import numpy as np

from varco_runtime.dtypes import Array


def attention(q: Array, k: Array, v: Array, num_heads: int, causal: bool = False) -> Array:
    """q `[S, H * d]`, k and v `[S, KV * d]` to `[S, H * d]`; H / KV query heads share a key and a value head."""
    length, head_dim = len(q), q.shape[1] // num_heads
    group = num_heads * head_dim // k.shape[1]
    hidden = np.triu(np.ones((length, length), bool), 1) if causal else None
    output = np.empty_like(q)
    for head in range(num_heads):
        mine = slice(head * head_dim, (head + 1) * head_dim)
        shared = slice(head // group * head_dim, (head // group + 1) * head_dim)
        scores = q[:, mine] @ k[:, shared].T
        scores *= np.float32(head_dim**-0.5)
        if hidden is not None:
            scores[hidden] = -np.inf
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=1, keepdims=True)
        output[:, mine] = scores @ v[:, shared]
    return output


def rotate(x: Array, positions: Array, head_dim: int, theta: float) -> Array:
    """Rotary positions: entries i and i + d/2 of each head turn by position * theta^(-2 i / d)."""
    half = head_dim // 2
    frequencies = np.float32(theta) ** -(np.arange(half, dtype=np.float32) / np.float32(half))
    angles = positions.astype(np.float32)[:, None, None] * frequencies.astype(np.float32)  # [S, 1, d/2]
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = np.split(x.reshape(len(x), -1, head_dim), 2, axis=2)  # [S, heads, d/2]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=2).reshape(x.shape)


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    """x / sqrt(mean x^2 + epsilon) * weight, over the last axis."""
    normed: Array = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(epsilon)) * weight
    return normed


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    """(x - mean x) / sqrt(var x + epsilon) * weight + bias, over the last axis."""
    centered = x - x.mean(axis=-1, keepdims=True)
    centered /= np.sqrt(np.square(centered).mean(axis=-1, keepdims=True) + np.float32(epsilon))
    normed: Array = centered * weight + bias
    return normed


def gelu_tanh(x: Array) -> Array:
    """GELU by its approximation with tanh."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    gelu: Array = np.float32(0.5) * x * (1 + np.tanh(inner))
    return gelu


def gelu_erf(x: Array) -> Array:
    """x * (1 + erf(x / sqrt 2)) / 2, in blocks: erf needs float64 on the way."""
    gelu = np.empty_like(x)
    flat, out = x.reshape(-1), gelu.reshape(-1)
    for start in range(0, len(flat), 1 << 20):
        part = flat[start : start + (1 << 20)].astype(np.float64)
        out[start : start + (1 << 20)] = 0.5 * part * (1 + _erf(part / np.sqrt(2)))
    return gelu


def _erf(x: Array) -> Array:
    """Abramowitz and Stegun 7.1.26: at most 1.5e-7 off."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf: Array = np.sign(x) * (1 - tail * np.exp(-np.square(x)))
    return erf
