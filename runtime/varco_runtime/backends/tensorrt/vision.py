"""Pictures on TensorRT: tiles to features in batches, features to image tokens, all in the device's memory."""

from __future__ import annotations

import numpy as np

from varco_runtime.backend import Features
from varco_runtime.backends.device_picture import DeviceFeatures, DeviceImageTokens, Sizes
from varco_runtime.backends.tensorrt.cuda_api import Buffer, Cuda
from varco_runtime.backends.tensorrt.engine import Engine, ExecutionContext
from varco_runtime.bundle.manifest import Manifest
from varco_runtime.dtypes import ITEM_BYTES, STORAGE, Array, from_stored, to_stored
from varco_runtime.errors import ContextError, ImageError
from varco_runtime.picture.packing import PackingPlan


class TensorRtVision:
    """Vision tower, projector and packing. It holds one list of media at a time."""

    def __init__(
        self,
        cuda: Cuda,
        manifest: Manifest,
        sizes: Sizes,
        engines: dict[str, Engine],
        buffers: dict[str, Buffer],
        scratch: Buffer,
    ) -> None:
        self._cuda = cuda
        self._manifest = manifest
        self._sizes = sizes
        self._buffers = buffers
        self._max_tokens = min(sizes.image_tokens, engines["packing"].longest("indices", 0))
        self._row_bytes = manifest.model.hidden_size * ITEM_BYTES[manifest.decoder.compute]
        self._vision = ExecutionContext(engines["vision"], scratch)
        self._projector = ExecutionContext(engines["projector"], scratch)
        self._packing = ExecutionContext(engines["packing"], scratch)
        for name in ("pixel_values", "patch_features"):
            self._vision.bind(name, buffers[name])
        self._projector.bind("patch_features", buffers["patch_features"])
        self._projector.bind("image_features", buffers["batch_features"])
        for name in ("image_features", "indices", "weights", "image_tokens"):
            self._packing.bind(name, buffers[name])
        self._picture: DeviceFeatures | DeviceImageTokens | None = None

    @property
    def max_media(self) -> tuple[int, int]:
        """The most tiles and the most image tokens at a time."""
        return self._sizes.picture_tiles, self._max_tokens

    def encode(self, pixel_values: Array, before: int = 0) -> DeviceFeatures:
        """Tiles `[T, 3, S, S]` in batches of the engine's size, behind the picture's first ones, which came before.

        A batch's features pass through a buffer of their own, because TensorRT wants its addresses aligned.
        """
        num_tiles, batch = before + len(pixel_values), self._sizes.batch_tiles
        if num_tiles > self._sizes.picture_tiles:
            raise ImageError(
                f"The picture makes {num_tiles} tiles, these engines take {self._sizes.picture_tiles}. "
                "Use a smaller picture, or build with a higher --max-tiles: varco engines BUNDLE"
            )
        continues = isinstance(self._picture, DeviceFeatures) and self._picture.num_tiles == before
        assert before == 0 or continues, f"Bug: tiles behind {before} of another picture"
        self._picture = None
        for first in range(0, len(pixel_values), batch):
            self._run_vision_tower(pixel_values[first : first + batch], before + first)
        self._picture = DeviceFeatures(num_tiles)
        return self._picture

    def _run_vision_tower(self, tiles: Array, first: int) -> None:
        """One batch of tiles to the features from tile `first` on."""
        image, model = self._manifest.image, self._manifest.model
        tile_bytes = image.patches_per_tile * self._row_bytes
        self._cuda.upload(self._buffers["pixel_values"], to_stored(tiles, self._manifest.vision.compute))
        self._vision.shape("pixel_values", *tiles.shape)
        self._vision.run()
        self._projector.shape("patch_features", len(tiles), image.patches_per_tile, model.vision_hidden_size)
        self._projector.run()
        features = self._buffers["image_features"].part(first * tile_bytes, len(tiles) * tile_bytes)
        self._cuda.copy(features, self._buffers["batch_features"].part(0, features.num_bytes))

    def features(self, pixel_values: Array, plan: PackingPlan) -> Features:
        """`encode` and `pack`, with a look at what the networks gave on the way."""
        image, model = self._manifest.image, self._manifest.model
        shape = 1, image.patches_per_tile, model.vision_hidden_size
        patches = []
        for index in range(len(pixel_values)):
            self._run_vision_tower(pixel_values[index : index + 1], 0)
            patches.append(self._read(self._buffers["patch_features"], shape))
        features = self.encode(pixel_values)
        image_features = self._read(
            self._buffers["image_features"], (len(pixel_values), image.patches_per_tile, model.hidden_size)
        )
        packed = self.pack(features, plan)
        image_tokens = self._read(packed.rows, (packed.num_tokens, model.hidden_size))
        return Features(np.concatenate(patches), image_features, image_tokens, packed)

    def _read(self, source: Buffer, shape: tuple[int, ...]) -> Array:
        """What lies there, on the host in fp32."""
        compute = self._manifest.decoder.compute
        values = np.empty(shape, STORAGE[compute])
        self._cuda.download(values, source)
        self._cuda.synchronize()
        return from_stored(values, compute)

    def pack(self, features: DeviceFeatures, plan: PackingPlan) -> DeviceImageTokens:
        """The plan goes to the device, once per picture; the rows it gathers never leave it."""
        assert features is self._picture, "Bug: features of an earlier picture"
        patches, num_rows = self._manifest.image.patches_per_tile, plan.newline_row
        assert num_rows == features.num_tiles * patches, f"Bug: a plan for {num_rows} rows, {features.num_tiles} tiles"
        assert 0 <= plan.indices.min() <= plan.indices.max() <= num_rows, f"Bug: a plan beyond its {num_rows} rows"
        if plan.num_tokens > self._max_tokens:
            raise ContextError(
                f"The picture makes {plan.num_tokens} image tokens, these engines take {self._max_tokens}. "
                "Use a smaller picture, or build with a higher --max-context: varco engines BUNDLE"
            )
        self._picture = None
        self._cuda.upload(self._buffers["indices"], plan.indices.astype(np.int64))
        self._cuda.upload(self._buffers["weights"], to_stored(plan.weights, self._manifest.decoder.compute))
        self._packing.shape("image_features", features.num_tiles, patches, self._manifest.model.hidden_size)
        self._packing.shape("indices", plan.num_tokens, 4)
        self._packing.shape("weights", plan.num_tokens, 4)
        self._packing.run()
        self._cuda.synchronize()  # so that its time and its faults are the picture's
        rows = self._buffers["image_tokens"].part(0, plan.num_tokens * self._row_bytes)
        self._picture = DeviceImageTokens(plan.num_tokens, rows)
        return self._picture

    def holds(self, tokens: DeviceImageTokens) -> bool:
        """Whether these are the tokens of the latest picture."""
        return tokens is self._picture
