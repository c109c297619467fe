"""A checkpoint in another basis of its residual stream: the same model, with weights that round better.

    x' = x R        for every hidden state x, R orthogonal (hadamard.py)

RMSNorm's gains do not commute with R, so each is folded into the linears behind it and becomes 1; what remains of the
norm does, since R keeps lengths. With W `[out, in]` and g the gain in front of it:

    embed_tokens, image_newline               x R             rows of the stream
    multi_modal_projector.linear_2            R^T W, b R      gives rows of the stream
    q, k, v, gate, up, lm_head                (W g) R         take the stream
    o, down                                   R^T W           give to the stream
    v and its bias; o                         V^T W, b V; W V each head's values, in a basis of their own

Queries and keys stay as they are: rotary positions, and Qwen3's norms, know their axes. A tied head becomes one of its
own, since the last norm's gain is folded into the head alone. Source: SpinQuant (arXiv 2405.16406), its R1 and R2.

Everything happens tensor by tensor, when one is read; nothing is held. Only names and shapes are used, so any decoder
of these names (Qwen2, Qwen3) turns alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.quantize.hadamard import Rotation
from varco_export.reading.tensor import BLOCK_BYTES, NUMPY_DTYPES, Tensor
from varco_runtime.dtypes import Array
from varco_runtime.errors import CheckpointError

_EMBEDDING, _HEAD, _LAST_NORM = "language_model.embed_tokens.weight", "lm_head.weight", "language_model.norm.weight"
_STREAM = ("multi_modal_projector.linear_2.weight", "multi_modal_projector.linear_2.bias", "image_newline")
# Of a layer, by what they do with the stream: the norm in front of those that take it, and those that give to it.
_TAKES = {
    "self_attn.q_proj.weight": "input_layernorm.weight",
    "self_attn.k_proj.weight": "input_layernorm.weight",
    "self_attn.v_proj.weight": "input_layernorm.weight",
    "mlp.gate_proj.weight": "post_attention_layernorm.weight",
    "mlp.up_proj.weight": "post_attention_layernorm.weight",
}
_GIVES = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
_VALUES = ("self_attn.v_proj.weight", "self_attn.v_proj.bias")
_AS_THEY_ARE = (
    "self_attn.q_proj.bias",
    "self_attn.k_proj.bias",
    "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",
)


@dataclass(frozen=True, slots=True)
class TurnedTensor(Tensor):
    """A tensor that is turned when it is read. Like any other it gives values of its number format.

    Args:
        gain: The norm that is folded in: each column is multiplied by its entry.
        inputs: Turns the rows, one after the other.
        outputs: Turn the columns, or a vector.
        is_one: Whether it is a gain that is folded in elsewhere: ones.
    """

    gain: Tensor | None = None
    inputs: Rotation | None = None
    outputs: tuple[Rotation, ...] = field(default=())
    is_one: bool = False

    def rows(self, start: int, stop: int) -> Array:
        """Return rows `start` to `stop`, rounded to the tensor's number format."""
        return self._rounded(self.exact_rows(start, stop))

    def exact_rows(self, start: int, stop: int) -> Array:
        """Return rows `start` to `stop` in fp32."""
        if self.is_one:
            return np.ones((stop - start, *self.shape[1:]), np.float32)
        if self.outputs:  # each row is made of all
            values = self._take(Tensor.rows(self, 0, self.num_rows))
            return self._give(values)[start:stop]
        return self._take(Tensor.rows(self, start, stop))

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Array]:
        """Yield every row once, in order, rounded to the tensor's number format."""
        if self.outputs:
            yield self.rows(0, self.num_rows)
        else:
            yield from Tensor.blocks(self, max_bytes)

    def columns(self, start: int, stop: int) -> Array:
        """Return columns `start` to `stop`, rounded to the tensor's number format."""
        return np.ascontiguousarray(self.rows(0, self.num_rows)[:, start:stop])

    def _take(self, stored: Array) -> Array:
        """Return rows of a matrix with the gain folded in and the inputs turned, fp32; a vector as it is."""
        gain = None if self.gain is None else self.gain.read().astype(np.float64)
        if self.inputs is None and gain is None:
            return stored.astype(np.float32)
        turned = np.empty(stored.shape, np.float32)
        step = max(1, (BLOCK_BYTES // 8) // stored.shape[1])
        for start in range(0, len(stored), step):
            rows = stored[start : start + step].astype(np.float64)
            if gain is not None:
                rows *= gain
            turned[start : start + step] = rows if self.inputs is None else self.inputs.turn(rows)
        return turned

    def _give(self, values: Array) -> Array:
        """Turn the outputs of all rows of a matrix, or a vector."""
        if values.ndim == 1:
            vector = values.astype(np.float64)
            for rotation in self.outputs:
                vector = rotation.turn(vector)
            return vector.astype(np.float32)
        step = max(1, (BLOCK_BYTES // 8) // len(values))
        for start in range(0, values.shape[1], step):
            columns = values[:, start : start + step].T.astype(np.float64)
            for rotation in self.outputs:
                columns = rotation.turn(columns)
            values[:, start : start + step] = columns.T
        return values

    def _rounded(self, exact: Array) -> Array:
        with np.errstate(over="ignore"):
            rounded = exact.astype(NUMPY_DTYPES[self.dtype])
        if not bool(np.isfinite(rounded.astype(np.float32)).all()):
            raise CheckpointError(
                f"{self.name} does not fit {self.dtype} once it is rotated: its largest entry is "
                f"{np.abs(exact).max():.3g}. Use --no-rotate."
            )
        return rounded


def rotated(checkpoint: Checkpoint, seed: int, heads: bool = True) -> Checkpoint:
    """Return the checkpoint in another basis of its residual stream and of its heads' values.

    Args:
        checkpoint: A plain one.
        seed: What the basis is made of.
        heads: Whether each head's values are turned too.

    Returns:
        A checkpoint whose tensors are turned as they are read. Its head is not tied.

    Raises:
        CheckpointError: A norm's gain is not finite or zero, or the language model has tensors of unknown use.
    """
    text = checkpoint.config.text
    stream = Rotation(text.hidden_size, seed)
    values = Rotation(text.head_dim, seed) if heads else None
    checkpoint = untied(checkpoint)
    tensors = {name: _turned(checkpoint, name, tensor, stream, values) for name, tensor in checkpoint.tensors.items()}
    for name in tensors:
        if name.endswith(_NORMS) or name == _LAST_NORM:
            _check_gain(checkpoint.tensors[name])
    return replace(checkpoint, tensors=tensors)


def untied(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with a head of its own, which is the embedding table where it was tied to that."""
    config = checkpoint.config
    if not config.text.tie_word_embeddings:
        return checkpoint
    tensors = checkpoint.tensors | {_HEAD: replace(checkpoint.tensors[_EMBEDDING], name=_HEAD)}
    skipped = {name: reason for name, reason in checkpoint.skipped.items() if name != _HEAD}
    config = replace(config, text=replace(config.text, tie_word_embeddings=False), raw=_untied(config.raw))
    return replace(checkpoint, tensors=tensors, config=config, skipped=skipped)


def _turned(checkpoint: Checkpoint, name: str, tensor: Tensor, stream: Rotation, values: Rotation | None) -> Tensor:
    """Return a tensor with what turns it, or as it is."""
    turns = _turns(checkpoint, name, stream, values)
    if turns is None:
        return tensor
    return TurnedTensor(tensor.name, tensor.dtype, tensor.shape, tensor.path, tensor.offset, **turns)


def _turns(checkpoint: Checkpoint, name: str, stream: Rotation, values: Rotation | None) -> dict[str, Any] | None:
    heads = () if values is None else (values,)
    if name == _EMBEDDING:
        return {"inputs": stream}
    if name == _HEAD:
        return {"inputs": stream, "gain": checkpoint.tensors[_LAST_NORM]}
    if name == _LAST_NORM:
        return {"is_one": True}
    if name in _STREAM:
        return {"outputs": (stream,)}
    if not name.startswith("language_model."):
        return None
    _, _, index, last = name.split(".", 3)
    layer = f"language_model.layers.{index}."
    if last in _NORMS:
        return {"is_one": True}
    if last in _TAKES:
        gain = checkpoint.tensors[layer + _TAKES[last]]
        return {"inputs": stream, "gain": gain, "outputs": heads if last in _VALUES else ()}
    if last in _VALUES:
        return {"outputs": heads} if heads else None
    if last in _GIVES:
        is_attention = last.startswith("self_attn.")
        return {"inputs": values if is_attention else None, "outputs": (stream,)}
    if last in _AS_THEY_ARE:
        return None
    raise CheckpointError(
        f"{name} is of a kind that is not known to take or give the residual stream, expected a layer of Qwen2 or "
        "Qwen3. Use --no-rotate."
    )


def _check_gain(tensor: Tensor) -> None:
    """Refuse a gain that cannot be folded in. NaN and infinity are refused where a tensor is read."""
    gain = tensor.read().astype(np.float32)
    if not gain.all():
        raise CheckpointError(
            f"{tensor.name} is zero at {int(np.flatnonzero(gain == 0)[0])}, expected gains other than zero: a channel "
            "that is switched off has no place in a rotation. Use --no-rotate."
        )


def _untied(raw: dict[str, Any]) -> dict[str, Any]:
    """Return config.json with `tie_word_embeddings` false, wherever it stands."""
    changed = dict(raw, tie_word_embeddings=False)
    if isinstance(raw.get("text_config"), dict):
        changed["text_config"] = dict(raw["text_config"], tie_word_embeddings=False)
    return changed
