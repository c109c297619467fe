"""Pictures on CUDA: tiles to features in batches, features to image tokens, all in the device's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from varco_runtime.backend import Features
from varco_runtime.backends.cuda.memory import PACK_TOKENS
from varco_runtime.backends.cuda.session import Buffer, Device, Network
from varco_runtime.backends.device_picture import DeviceFeatures, DeviceImageTokens, Sizes
from varco_runtime.bundle.manifest import Manifest
from varco_runtime.dtypes import Array, from_stored
from varco_runtime.errors import ContextError
from varco_runtime.picture.packing import PackingPlan


class CudaVision:
    """Vision tower, projector and packing. It holds one list of media at a time, its tokens in `image_tokens`."""

    def __init__(
        self, device: Device, manifest: Manifest, sizes: Sizes, networks: dict[str, Network], buffers: dict[str, Buffer]
    ) -> None:
        self._device = device
        self._manifest = manifest
        self._sizes = sizes
        self._networks = networks
        self._buffers = buffers
        self._picture: DeviceFeatures | DeviceImageTokens | None = None

    def warm_up(self) -> None:
        """Run two batches of tiles, and a part of the largest picture packed: what no picture exceeds."""
        side, patches = self._manifest.image.tile_px, self._manifest.image.patches_per_tile
        num_tiles = min(2 * self._sizes.batch_tiles, self._sizes.picture_tiles)
        self.encode_pixels(np.zeros((num_tiles, 3, side, side), np.uint8))
        tokens = min(PACK_TOKENS, self._sizes.image_tokens)
        indices, weights = np.zeros((tokens, 4), np.int32), np.zeros((tokens, 4), np.float32)
        largest = self._picture = DeviceFeatures(self._sizes.picture_tiles)
        self.pack(largest, PackingPlan(indices, weights, (0, 0), self._sizes.picture_tiles * patches))
        self._picture = None

    def encode(self, pixel_values: Array, first: int = 0) -> DeviceFeatures:
        """Encode tiles `[T, 3, S, S]` fp32 in batches, behind the picture's first ones, which came before."""
        return self._encode(pixel_values.astype(np.float32, copy=False), first, self._run_vision_tower)

    def encode_pixels(self, tiles: Array, first: int = 0) -> DeviceFeatures:
        """Encode uint8 tiles, which become `pixel_values` on the device."""
        return self._encode(tiles, first, self._normalise_and_run_tower)

    def _encode(self, tiles: Array, before: int, run_tower: Callable[[Any, int], None]) -> DeviceFeatures:
        num_tiles, batch = before + len(tiles), self._sizes.batch_tiles
        assert num_tiles <= self._sizes.picture_tiles, f"Bug: {num_tiles} tiles of {self._sizes.picture_tiles}"
        continues = isinstance(self._picture, DeviceFeatures) and self._picture.num_tiles == before
        assert before == 0 or continues, f"Bug: tiles behind {before} of another picture"
        self._picture = None
        firsts = range(0, len(tiles), batch)
        batches = [tiles[first : first + batch] for first in firsts]
        for first, one, uploaded in zip(firsts, batches, self._uploads(batches), strict=True):
            run_tower(uploaded, len(one))
            self._project(len(one), before + first)
        self._picture = DeviceFeatures(num_tiles)
        return self._picture

    def _uploads(self, batches: list[Array]) -> Iterator[Any]:
        """Yield the batches on the device, each copied while the one before it is at work."""
        if len(batches) == 1:
            yield self._device.upload(batches[0])
            return
        with ThreadPoolExecutor(1) as copying:
            following = copying.submit(self._device.upload, batches[0])
            for batch in batches[1:]:
                uploaded, following = following.result(), copying.submit(self._device.upload, batch)
                yield uploaded
            yield following.result()

    def _normalise_and_run_tower(self, tiles: Any, num_tiles: int) -> None:
        buffer = self._buffers["pixel_values"]
        shape = (num_tiles, *buffer.shape[1:])
        binding = self._networks["pixels"].binding()
        binding.value("tiles", tiles)
        binding.output("pixel_values", buffer, shape)
        self._networks["pixels"].run(binding)
        self._run_vision_tower(buffer, num_tiles)

    def _run_vision_tower(self, pixel_values: Any, num_tiles: int) -> None:
        """Take one batch, in a buffer or a value of its own, to patch features."""
        patches = self._buffers["patch_features"]
        binding = self._networks["vision"].binding()
        if isinstance(pixel_values, Buffer):
            binding.input("pixel_values", pixel_values, (num_tiles, *pixel_values.shape[1:]))
        else:
            binding.value("pixel_values", pixel_values)
        binding.output("patch_features", patches, (num_tiles, *patches.shape[1:]))
        self._networks["vision"].run(binding)

    def _project(self, num_tiles: int, first: int) -> None:
        """Project a batch's patch features to the picture's features from tile `first` on."""
        patches, features = self._buffers["patch_features"], self._buffers["image_features"]
        binding = self._networks["projector"].binding()
        binding.input("patch_features", patches, (num_tiles, *patches.shape[1:]))
        shape = (num_tiles, *features.shape[1:])
        binding.output("image_features", features, shape, first * features.shape[1] * features.shape[2])
        self._networks["projector"].run(binding)

    def pack(self, features: DeviceFeatures, plan: PackingPlan) -> DeviceImageTokens:
        """Pack by the plan, which goes to the device a part at a time; the rows it gathers never leave it."""
        rows, tokens = self._buffers["image_features"], self._buffers["image_tokens"]
        assert features is self._picture, "Bug: features of an earlier picture"
        num_rows = features.num_tiles * rows.shape[1]
        assert plan.newline_row == num_rows, f"Bug: a plan for {plan.newline_row} rows, the picture has {num_rows}"
        assert 0 <= plan.indices.min() <= plan.indices.max() <= num_rows, f"Bug: a plan beyond its {num_rows} rows"
        if plan.num_tokens > tokens.shape[0]:
            raise ContextError(
                f"The picture makes {plan.num_tokens} image tokens, the context holds {self._sizes.max_context}. "
                "Use a smaller picture, or load with a larger max_context."
            )
        self._picture = None
        for first in range(0, plan.num_tokens, PACK_TOKENS):
            indices, weights = (part[first : first + PACK_TOKENS] for part in (plan.indices, plan.weights))
            binding = self._networks["packing"].binding()
            binding.input("image_features", rows, (features.num_tiles, *rows.shape[1:]))
            binding.value("indices", self._device.upload(indices.astype(np.int64)))
            binding.value("weights", self._device.upload(weights.astype(np.float32)))
            binding.output("image_tokens", tokens, (len(indices), tokens.shape[1]), first * tokens.shape[1])
            self._networks["packing"].run(binding)
        self._picture = DeviceImageTokens(plan.num_tokens)
        return self._picture

    def features(self, pixel_values: Array, plan: PackingPlan) -> Features:
        """Run `encode` and `pack`, with a look at what the networks gave on the way."""
        patches = np.concatenate([self._patches_of(tile) for tile in np.split(pixel_values, len(pixel_values))])
        features = self.encode(pixel_values)
        image_features = self._read("image_features", len(pixel_values))
        packed = self.pack(features, plan)
        return Features(patches, image_features, self._read("image_tokens", packed.num_tokens), packed)

    def _patches_of(self, tile: Array) -> Array:
        """Return patch features `[1, P, C]` of one tile, on the host in fp32."""
        self._run_vision_tower(self._device.upload(tile.astype(np.float32, copy=False)), 1)
        return self._read("patch_features", 1)

    def _read(self, name: str, count: int) -> Array:
        """Return the first `count` entries of a buffer, on the host in fp32."""
        buffer = self._buffers[name]
        return from_stored(buffer.read()[:count], buffer.dtype)

    def holds(self, tokens: DeviceImageTokens) -> bool:
        """Tell whether these are the tokens of the latest picture."""
        return tokens is self._picture
