"""Memory of a bundle for CUDA: how large every buffer is, and whether the GPU has room, before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import replace

from varco_runtime.backends.cuda.driver import GpuFacts
from varco_runtime.backends.device_picture import Sizes
from varco_runtime.backends.slots import AUTO, AUTO_SLOTS, Slots, device_slots
from varco_runtime.bundle.manifest import Manifest
from varco_runtime.dtypes import ITEM_BYTES
from varco_runtime.errors import ShortageError
from varco_runtime.picture.packing import largest_picture

BATCH_TILES = 16
"""Tiles in one run of the vision tower: enough to fill a data-centre GPU, few enough to bound the activations."""
PREFILL_TOKENS = 4096
"""Prompt positions in one run. A picture of 2,929 tokens takes one; integer weights are unpacked once per run."""
NUM_LOGITS = 16
"""Rows of logits kept at once: one is an answer's, many are a measurement's."""
PACK_TOKENS = 1024
"""Image tokens in one run of the packing, which gathers four rows for each."""
LIBRARY_BYTES = 512 << 20
MAX_FURTHER_GRAPHS = 40
"""Graphs that are captured beside those of loading, when a step is first taken: of several rows, and of one sequence in
another slot than the first. Steps of which there is none by then run as they are, launch by launch."""
GRAPH_BYTES = 8 << 20
"""Of one captured step, about: some 1,000 kernels with their arguments. An estimate: no GPU has measured it."""
PROMPT_ROWS, TOWER_ROWS = 16, 12
"""What is set aside for kernels and libraries, and for activations, in rows of hidden size for each position of a run
and each patch of a batch. Estimates: no GPU has measured them."""


def sizes_of(manifest: Manifest, max_context: int, slots: int = 1) -> Sizes:
    """Return what the buffers of a bundle hold, at a context of `max_context` positions in each slot."""
    tiles, tokens = largest_picture(manifest.image)
    return Sizes(
        batch_tiles=min(BATCH_TILES, tiles),
        picture_tiles=tiles,
        image_tokens=min(tokens, max_context),
        prefill_tokens=min(PREFILL_TOKENS, max_context),
        num_logits=NUM_LOGITS,
        max_context=max_context,
        slots=slots,
    )


def buffer_shapes(manifest: Manifest, sizes: Sizes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return type and shape of every buffer allocated at loading, by name; `cache` stands for each of the caches."""
    model, image, compute = manifest.model, manifest.image, manifest.decoder.compute
    patches = image.patches_per_tile
    return {
        "pixel_values": ("fp32", (sizes.batch_tiles, 3, image.tile_px, image.tile_px)),
        "patch_features": (compute, (sizes.batch_tiles, patches, model.vision_hidden_size)),
        "image_features": (compute, (sizes.picture_tiles, patches, model.hidden_size)),
        "image_tokens": (compute, (sizes.image_tokens, model.hidden_size)),
        "logits": ("fp32", (1, sizes.num_logits, model.vocab_size)),
        "cache": (compute, (sizes.slots, model.num_key_value_heads, sizes.max_context, model.head_dim)),
    }


def needed_bytes(manifest: Manifest, sizes: Sizes) -> tuple[int, int]:
    """Return the device memory that the bundle takes, and how much of it are the caches."""
    weights = sum(manifest.files[part.data].size for part in manifest.components.values())
    buffers = _buffer_bytes(manifest, sizes)
    # A picture is packed with its newline behind it, in a copy.
    copied, caches = sum(buffers["image_features"]), sum(buffers["cache"])
    return weights + sum(map(sum, buffers.values())) + copied + _work_bytes(manifest, sizes), caches


def buffer_sizes(manifest: Manifest, sizes: Sizes) -> list[int]:
    """Return bytes of every buffer that is allocated at loading, each cache for itself."""
    return [size for group in _buffer_bytes(manifest, sizes).values() for size in group]


def _buffer_bytes(manifest: Manifest, sizes: Sizes) -> dict[str, list[int]]:
    """Return bytes of the buffers of each name: several for the caches, one for all others."""
    counts = {"cache": 2 * manifest.model.num_layers}
    return {
        name: [math.prod(shape) * ITEM_BYTES[dtype]] * counts.get(name, 1)
        for name, (dtype, shape) in buffer_shapes(manifest, sizes).items()
    }


def _work_bytes(manifest: Manifest, sizes: Sizes) -> int:
    """Return the bytes of the largest runs; sessions keep what they once took."""
    model, item = manifest.model, ITEM_BYTES[manifest.decoder.compute]
    prompt = PROMPT_ROWS * sizes.prefill_tokens * model.hidden_size * item
    tower = TOWER_ROWS * sizes.batch_tiles * manifest.image.patches_per_tile * model.vision_hidden_size * item
    packing = 4 * PACK_TOKENS * model.hidden_size * item
    # A draw of all rows takes some copies of their logits, in fp64; their buffers are there once for each step.
    choice = 4 * max(sizes.num_logits, sizes.slots) * model.vocab_size * ITEM_BYTES["fp64"]
    graphs = MAX_FURTHER_GRAPHS * GRAPH_BYTES if sizes.slots > 1 else 0
    return LIBRARY_BYTES + prompt + tower + packing + choice + graphs


def check_memory(manifest: Manifest, sizes: Sizes, gpu: GpuFacts, spare_bytes: int = 0) -> None:
    """Refuse to load what does not fit. Raises `ShortageError`. `spare_bytes` are this process's own, from before."""
    needed, _ = needed_bytes(manifest, sizes)
    if needed > gpu.free_bytes + spare_bytes:
        raise shortage(manifest, sizes, gpu)


def gpu_slots(manifest: Manifest, sizes: Sizes, gpu: GpuFacts, spare_bytes: int, slots: int | str) -> Slots:
    """Return how many slots the GPU is to hold. `sizes` are those of one; raises `UsageError` for too many."""
    number = AUTO_SLOTS if slots == AUTO else int(slots)
    needed, caches = needed_bytes(manifest, replace(sizes, slots=number))
    return device_slots(slots, caches // number, needed - caches, gpu.free_bytes + spare_bytes, gpu.name)


def shortage(
    manifest: Manifest, sizes: Sizes, gpu: GpuFacts, during: str = "", free_now: int | None = None
) -> ShortageError:
    """Return one line with what is needed, what was free, and what to lower.

    `during` says what ran out of memory. `free_now` are the bytes that were free then, beside all that had been loaded.
    """
    needed, caches = needed_bytes(manifest, sizes)
    what = f"The GPU ran out of memory during {during}: the model" if during else "The model"
    left = "" if free_now is None else f" before loading, {_gb(free_now)} are free now"
    return ShortageError(
        f"{what} needs about {_gb(needed)} of GPU memory, {_gb(gpu.free_bytes)} of {_gb(gpu.total_bytes)} were free on "
        f"{gpu.name}{left}. End other programs, load with a lower max_context (the caches of "
        f"{_slots(sizes)}{sizes.max_context:,} positions take {_gb(caches)}), or export {_smaller(manifest)}."
    )


def _slots(sizes: Sizes) -> str:
    return "" if sizes.slots == 1 else f"{sizes.slots} slots of "


def _smaller(manifest: Manifest) -> str:
    """Return the options that would make the bundle smaller on the device."""
    weights, _, head = manifest.decoder.precision.partition(", head ")  # one format for both where no head is named
    is_int4 = weights.startswith("int4")
    is_stored = any(method in weights for method in ("GPTQ", "compressed-tensors"))  # and not to be rounded again
    options = [] if is_int4 or is_stored else ["--decoder int4"]
    options += [] if manifest.embedding else ["--embedding host"]
    options += ["--lm-head int4"] if head or not (is_int4 or is_stored) else []
    return f"with {' '.join(options)}" if options else "a smaller model"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
