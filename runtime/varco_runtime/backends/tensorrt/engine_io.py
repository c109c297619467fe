"""What each TensorRT engine of a bundle takes and gives: names, types and shapes, as the exporter writes them."""

from __future__ import annotations

from varco_runtime.bundle.graph_contract import BATCH
from varco_runtime.bundle.manifest import Manifest, cache_names
from varco_runtime.bundle.tensor import Tensor

COMPONENTS = ("vision", "projector", "packing", "embedding", "decoder")


def engine_io(manifest: Manifest, max_context: int, slots: int = 1) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each component, for caches of `max_context` positions.

    All networks compute in one type. `indices` count the rows of all tiles, the one behind the last is image_newline.
    The rows of a decoder for several slots are a length that each run chooses.
    """
    rows: int | str = 1 if slots == 1 else BATCH
    model, side, patches = manifest.model, manifest.image.tile_px, manifest.image.patches_per_tile
    dtype, width, vision_width = manifest.decoder.compute, model.hidden_size, model.vision_hidden_size
    pixels = Tensor(dtype, ("tiles", 3, side, side), True)
    decoder = {
        "inputs_embeds": Tensor(dtype, (rows, "sequence", width), True),
        "position_ids": Tensor("int64", (rows, "sequence"), True),
        "write_indices": Tensor("int64", (rows,), True),
        "attention_mask": Tensor("bool", (rows, 1, "sequence", "total"), True),
        "logit_positions": Tensor("int64", ("num_logits",), True),
        "logits": Tensor("fp32", (rows, "num_logits", model.vocab_size), False),
        "next_token": Tensor("int64", (rows, "num_logits"), False),
    }
    cache = (rows, model.num_key_value_heads, max_context, model.head_dim)
    for name in cache_names(model.num_layers):
        decoder[f"past.{name}"] = Tensor(dtype, cache, True)
        decoder[f"present.{name}"] = Tensor(dtype, cache, False)
    return {
        "vision": {"pixel_values": pixels, "patch_features": Tensor(dtype, ("tiles", patches, vision_width), False)},
        "projector": {
            "patch_features": Tensor(dtype, ("tiles", patches, vision_width), True),
            "image_features": Tensor(dtype, ("tiles", patches, width), False),
        },
        "packing": {
            "image_features": Tensor(dtype, ("tiles", patches, width), True),
            "indices": Tensor("int64", ("tokens", 4), True),
            "weights": Tensor(dtype, ("tokens", 4), True),
            "image_tokens": Tensor(dtype, ("tokens", width), False),
        },
        "embedding": {
            "token_ids": Tensor("int64", (1, "sequence"), True),
            "inputs_embeds": Tensor(dtype, (1, "sequence", width), False),
        },
        "decoder": decoder,
    }
