"""One decoder layer of Qwen2 or Qwen3 at a time: transformers' module, in fp32, with the checkpoint's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from transformers import Qwen2Config, Qwen3Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RotaryEmbedding

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.config.model_config import TextConfig
from varco_export.quantize.weights import load_weights
from varco_runtime.dtypes import Array

_QWEN2 = (Qwen2Config, Qwen2DecoderLayer, Qwen2RotaryEmbedding)
_QWEN3 = (Qwen3Config, Qwen3DecoderLayer, Qwen3RotaryEmbedding)

# Every linear of a layer by the one whose input it shares; down_proj, whose Hessian is largest, comes last.
SHARED_INPUT = {
    "self_attn.q_proj": "self_attn.q_proj",
    "self_attn.k_proj": "self_attn.q_proj",
    "self_attn.v_proj": "self_attn.q_proj",
    "self_attn.o_proj": "self_attn.o_proj",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.gate_proj",
    "mlp.down_proj": "mlp.down_proj",
}
LINEARS = tuple(SHARED_INPUT)


def layer_name(index: int) -> str:
    """Return the canonical name of a decoder layer."""
    return f"language_model.layers.{index}"


class Decoder:
    """What all layers share: their configuration and rotary positions."""

    def __init__(self, text: TextConfig, device: torch.device) -> None:
        self._device = device
        make_config, self._layer, make_rotary = _QWEN3 if text.qk_norm else _QWEN2
        self._config = make_config(
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_hidden_layers=text.num_hidden_layers,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            rms_norm_eps=text.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
            max_position_embeddings=text.max_position_embeddings,
            attn_implementation="sdpa",  # causal without a mask, and without a matrix of all pairs of tokens
        )
        self._rotary = make_rotary(self._config).to(device)

    def layer(self, checkpoint: Checkpoint, index: int) -> torch.nn.Module:
        """Read layer `index` now."""
        build: Callable[[], torch.nn.Module] = partial(self._layer, self._config, index)
        return load_weights(build, checkpoint, f"{layer_name(index)}.", self._device)

    @torch.no_grad()
    def run(self, layer: torch.nn.Module, samples: Iterable[Array]) -> Iterator[Array]:
        """Yield the hidden states behind the layer, `[S, D]`, of those in front of it."""
        for sample in samples:
            hidden = torch.from_numpy(sample).to(self._device)[None]  # [1, S, D]
            output = layer(hidden, position_embeddings=self.positions(hidden[0]))
            yield output[0].cpu().numpy()

    def positions(self, stream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines of the positions of a stream `[S, D]`."""
        positions = torch.arange(stream.shape[0], device=self._device)[None]
        cosines, sines = self._rotary(stream[None], positions)
        return cosines, sines


def linear_of(layer: torch.nn.Module, name: str) -> torch.nn.Linear:
    """Return a linear of a layer, by its name in `LINEARS`."""
    linear = layer.get_submodule(name)
    assert isinstance(linear, torch.nn.Linear), f"Bug: {name} is no linear"
    return linear


@contextmanager
def watched_inputs(
    layer: torch.nn.Module, watch: Callable[[str, torch.nn.Linear, torch.Tensor], None]
) -> Iterator[None]:
    """Call `watch(name, linear, input)` whenever one of the linears that others share their input with runs."""
    handles = []
    for name in sorted(set(SHARED_INPUT.values())):
        linear = layer.get_submodule(name)

        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            assert isinstance(module, torch.nn.Linear), f"Bug: {name} is no linear"
            watch(name, module, inputs[0])

        handles.append(linear.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
