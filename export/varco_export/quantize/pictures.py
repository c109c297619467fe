"""Pictures to image tokens, with torch: vision tower and projector from the checkpoint, everything else the runtime's.

The tower is built of transformers' own SigLIP modules, of the layers that run and nothing behind them.
"""

from __future__ import annotations

import torch
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder, SiglipVisionEmbeddings

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.quantize.weights import load_weights, read_weight
from varco_runtime.dtypes import Array
from varco_runtime.picture.loading import Picture
from varco_runtime.picture.packing import pack, packing_plan
from varco_runtime.picture.tiles import normalize, tile

_MAX_TILES = 4  # at a time: 729 patches of 4,304 floats each are 50 MB


class PictureEncoder:
    """Vision tower and projector in fp32, from pictures to image tokens."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        config = checkpoint.config
        vision = SiglipVisionConfig(
            hidden_size=config.vision.hidden_size,
            intermediate_size=config.vision.intermediate_size,
            num_hidden_layers=config.vision.num_hidden_layers,
            num_attention_heads=config.vision.num_attention_heads,
            image_size=config.vision.image_size,
            patch_size=config.vision.patch_size,
            layer_norm_eps=config.vision.layer_norm_eps,
            hidden_act="gelu_pytorch_tanh",
            attn_implementation="sdpa",
        )
        self._settings = config.image
        self._device = device
        self._embeddings = load_weights(
            lambda: SiglipVisionEmbeddings(vision), checkpoint, "vision_tower.embeddings.", device
        )
        self._embeddings.position_ids = torch.arange(self._embeddings.num_positions, device=device)[None]
        self._encoder = load_weights(lambda: SiglipEncoder(vision), checkpoint, "vision_tower.encoder.", device)
        self._projector = [
            (
                read_weight(checkpoint, f"multi_modal_projector.{name}.weight").to(device),
                read_weight(checkpoint, f"multi_modal_projector.{name}.bias").to(device),
            )
            for name in ("linear_1", "linear_2")
        ]
        self._newline = read_weight(checkpoint, "image_newline").numpy()

    @torch.no_grad()
    def encode(self, picture: Picture) -> Array:
        """Return image tokens `[N, D]` in fp32."""
        pixel_values = torch.from_numpy(normalize(tile(picture, self._settings), self._settings))  # [T, 3, S, S]
        features = [self._project(some.to(self._device)).cpu() for some in torch.split(pixel_values, _MAX_TILES)]
        plan = packing_plan(picture.size_hw, self._settings)
        return pack(torch.cat(features).numpy(), self._newline, plan)

    def _project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self._embeddings(pixel_values)  # [T, P, C]
        x = self._encoder(inputs_embeds=x).last_hidden_state
        (first, first_bias), (second, second_bias) = self._projector
        x = torch.nn.functional.gelu(torch.nn.functional.linear(x, first, first_bias))
        return torch.nn.functional.linear(x, second, second_bias)  # [T, P, D]
