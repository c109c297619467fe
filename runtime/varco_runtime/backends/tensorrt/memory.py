"""The device memory of a bundle on TensorRT: every buffer, sized from the manifest, allocated once."""

from __future__ import annotations

from varco_runtime.backends.device_picture import Sizes
from varco_runtime.backends.tensorrt.cuda_api import Buffer, Cuda
from varco_runtime.backends.tensorrt.engine_choice import DeviceBytes, Engines
from varco_runtime.bundle.manifest import Manifest, cache_names
from varco_runtime.dtypes import ITEM_BYTES
from varco_runtime.errors import BackendError
from varco_runtime.picture.packing import largest_picture

MAX_LOGITS = 16
"""Rows of logits kept at once, of those that the engine allows: one is the answer's, many are a measurement's."""


def sizes_of(manifest: Manifest, engines: Engines, slots: int = 1) -> Sizes:
    """Return the sizes of all buffers: the bundle's largest picture, within what the engines were built for."""
    tiles, tokens = largest_picture(manifest.image)
    max_context = engines["decoder"].max_context
    return Sizes(
        batch_tiles=min(engines["vision"].max_tiles, engines["projector"].max_tiles, tiles),
        picture_tiles=min(engines["packing"].max_tiles, tiles),
        image_tokens=min(tokens, max_context),
        prefill_tokens=min(engines["decoder"].prefill_tokens, engines["embedding"].prefill_tokens, max_context),
        num_logits=min(engines["decoder"].max_logits, MAX_LOGITS),
        max_context=max_context,
        slots=slots,
    )


def device_bytes(cuda: Cuda, manifest: Manifest, engines: Engines) -> DeviceBytes:
    """What slots are counted by: the buffers beside the caches are those of as many slots as the engines take."""
    most = engines["decoder"].num_slots
    sizes = buffer_bytes(manifest, sizes_of(manifest, engines, most))
    caches = sum(size for name, size in sizes.items() if name.startswith("cache."))
    weights = sum(manifest.files[engine.file].size for engine in engines.values())
    return DeviceBytes(caches // most, weights + sum(sizes.values()) - caches, cuda.free_bytes())


def buffer_bytes(manifest: Manifest, sizes: Sizes) -> dict[str, int]:
    """Bytes of every buffer but the scratch memory, which the engines size.

    A decode step has small inputs of its own: a captured graph keeps its addresses. `positions` counts 0, 1, 2 ... and
    `triangle` is a causal mask, so that positions and masks are made by copies on the device.
    """
    model, image = manifest.model, manifest.image
    item, integer = ITEM_BYTES[manifest.decoder.compute], ITEM_BYTES["int64"]
    patches, width = image.patches_per_tile, model.hidden_size
    cache = sizes.slots * slot_bytes(manifest, sizes.max_context)
    rows = max(sizes.num_logits, sizes.slots)
    several = {
        "rows_tokens": sizes.slots * integer,
        "rows_embeds": sizes.slots * width * item,
        "rows_positions": sizes.slots * integer,
        "rows_mask": sizes.slots * sizes.max_context,
    }
    return {
        "pixel_values": sizes.batch_tiles * 3 * image.tile_px**2 * item,
        "patch_features": sizes.batch_tiles * patches * model.vision_hidden_size * item,
        "batch_features": sizes.batch_tiles * patches * width * item,
        "image_features": sizes.picture_tiles * patches * width * item,
        "indices": sizes.image_tokens * 4 * integer,
        "weights": sizes.image_tokens * 4 * item,
        "image_tokens": sizes.image_tokens * width * item,
        "token_ids": sizes.prefill_tokens * integer,
        "inputs_embeds": sizes.prefill_tokens * width * item,
        "position_ids": sizes.prefill_tokens * integer,
        "write_indices": integer,
        "attention_mask": sizes.prefill_tokens * sizes.max_context,
        "logit_positions": sizes.num_logits * integer,
        "logits": rows * model.vocab_size * ITEM_BYTES["fp32"],
        "next_token": rows * integer,
        "step_token": integer,
        "step_embeds": width * item,
        "step_position": integer,
        "step_mask": sizes.max_context,
        "step_logit": integer,
        "positions": sizes.max_context * integer,
        "triangle": sizes.prefill_tokens**2,
        **(several if sizes.slots > 1 else {}),
    } | {f"cache.{name}": cache for name in cache_names(model.num_layers)}


def slot_bytes(manifest: Manifest, max_context: int) -> int:
    """Bytes of a slot in one cache: an address that TensorRT takes begins each of them."""
    model = manifest.model
    return model.num_key_value_heads * max_context * model.head_dim * ITEM_BYTES[manifest.decoder.compute]


class DeviceMemory:
    """Allocates what a bundle needs, or says in one line how much that is and how to need less."""

    def __init__(self, cuda: Cuda, manifest: Manifest, engines: Engines, sizes: Sizes) -> None:
        self._cuda = cuda
        self._sizes = buffer_bytes(manifest, sizes)
        self._engine_bytes = sum(manifest.files[engine.file].size for engine in engines.values())
        self._cache_bytes = sum(size for name, size in self._sizes.items() if name.startswith("cache."))
        self._free_bytes = cuda.free_bytes()

    def check(self) -> None:
        """Before anything is loaded, on devices that know what is free. Raises `BackendError`."""
        if not self._cuda.is_integrated and self._needed() > self._free_bytes:
            raise self.shortage()

    def allocate(self, scratch_bytes: int) -> tuple[dict[str, Buffer], Buffer]:
        """All buffers by name, and the scratch memory. Raises `BackendError`."""
        self._sizes["scratch"] = scratch_bytes
        buffers = {}
        for name, num_bytes in self._sizes.items():
            buffer = self._cuda.allocate(num_bytes)
            if buffer is None:
                raise self.shortage()
            buffers[name] = buffer
        return buffers, buffers.pop("scratch")

    def shortage(self) -> BackendError:
        return BackendError(
            f"The model needs {_mb(self._needed())} of GPU memory, {_mb(self._free_bytes)} are free on "
            f"{self._cuda.name}. End other programs, build with a lower --max-context ({_mb(self._cache_bytes)} of it) "
            "or --max-tiles: varco engines BUNDLE, or export with --decoder int4."
        )

    def _needed(self) -> int:
        return self._engine_bytes + sum(self._sizes.values())


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
