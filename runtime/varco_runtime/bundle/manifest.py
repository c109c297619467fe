"""What `bundle.json` says: plain facts, filled by the exporter and read by the runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from varco_runtime.bundle.bounds import OneOf, Pattern, Range
from varco_runtime.bundle.settings import (
    NO_MEDIA_FACTS,
    GenerationSettings,
    ImageSettings,
    MediaSettings,
    PromptSettings,
)
from varco_runtime.dtypes import ITEM_BYTES

FORMAT_VERSION = 2
Float = Annotated[str, OneOf("fp32", "fp16", "bf16")]
"""A type that networks compute in."""
Context = Annotated[int, Range(16, 1 << 20)]
"""Positions of a prompt and its answer."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What every file must be."""

    size: Annotated[int, Range(0, 1 << 50)]
    sha256: Annotated[str, Pattern("[0-9a-f]{64}", "64 hexadecimal digits")]


@dataclass(frozen=True, slots=True)
class Component:
    """One network.

    Args:
        file: Its graph.
        data: Its weights.
        compute: The number format of its inputs and outputs.
        precision: The formats that it works in, described for people.
        weight_bytes: The bytes that one pass reads.
    """

    file: str
    data: str
    compute: Float
    precision: str
    weight_bytes: Annotated[int, Range(0, 1 << 50)]


@dataclass(frozen=True, slots=True)
class HeadRows:
    """Token rows that are those of the output head as well: int8 in symmetric blocks, as MatMulNBits reads them.

    A row is its integers, 128 being zero, times the scale of their block, which is in the decoder's compute type.

    Args:
        file: The decoder's weights.
        values_offset: Where the integers begin: `[vocab_size, blocks, block_size]`, a byte each.
        scales_offset: Where the scales begin: `[vocab_size, blocks]`.
        block_size: Integers of a block; the last one of a row is filled up.
        has_nibbles: Whether an integer is two of 4 bits: a row is first the upper ones and then the lower ones, two to
            a byte, the lower half of it first; and first 16 times its scales, then the scales.
    """

    file: str
    values_offset: Annotated[int, Range(0, 1 << 50)]
    scales_offset: Annotated[int, Range(0, 1 << 50)]
    block_size: Annotated[int, Range(16, 256)]
    has_nibbles: bool

    def row_bytes(self, width: int, scale_bytes: int) -> tuple[int, int]:
        """Return the bytes of a row's integers and of its scales."""
        num_blocks = -(-width // self.block_size)
        return num_blocks * self.block_size, num_blocks * (1 + self.has_nibbles) * scale_bytes


@dataclass(frozen=True, slots=True)
class Embedding:
    """The token embedding table: raw rows, little endian; row `rows - 1` is image_newline.

    A bundle whose graphs hold the token rows has none.

    Args:
        file: The rows; image_newline alone where the token rows are the head's.
        dtype: Their number format.
        rows: One for each id of the vocabulary, and the newline's.
        width: Numbers in a row.
        head_rows: Where the token rows are if they are the head's; None: they are in `file`.
    """

    file: str
    dtype: Float
    rows: Annotated[int, Range(2, (1 << 22) + 1)]
    width: Annotated[int, Range(1, 1 << 16)]
    head_rows: HeadRows | None = None

    @property
    def num_stored_rows(self) -> int:
        """Return the number of rows in `file`."""
        return self.rows if self.head_rows is None else 1


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """A TensorRT engine of one component: what built it, for which device, and how far its profiles reach.

    The decoder and the embedding have two profiles: 0 for prefill, 1 .. `prefill_tokens` new positions and 1 ..
    `max_logits` logits; 1 for decoding, one of each. Both see 1 .. `max_context` positions, the length of the caches.
    A decoder for several slots has a third one: 2 for decoding one position in 2 .. `slots` rows.

    Args:
        component: The network, by the name of its graph.
        file: The engine.
        builder: The library that built it.
        builder_version: The version of it, which alone runs the engine.
        target: The kind of device that alone runs it: `sm89`.
        precision: The formats that it works in, described for people.
        max_context: Positions of the caches.
        max_tiles: The most tiles in one run of this component.
        prefill_tokens: The most new positions of a prefill.
        max_logits: The most logits of a prefill.
        slots: The most sequences that a step of the decoder takes, None for one.
    """

    component: Annotated[str, OneOf("vision", "projector", "packing", "embedding", "decoder")]
    file: str
    builder: Annotated[str, OneOf("tensorrt", "tensorrt_rtx")]
    builder_version: str
    target: str
    precision: str
    max_context: Context
    max_tiles: Annotated[int, Range(1, 1 << 16)]
    prefill_tokens: Annotated[int, Range(1, 1 << 20)]
    max_logits: Annotated[int, Range(1, 1 << 20)]
    slots: Annotated[int, Range(2, 64)] | None = None

    @property
    def num_slots(self) -> int:
        """Return the most sequences that a step takes."""
        return self.slots or 1


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The shape of the model, as far as the runtime needs it.

    The names are those of Hugging Face's `text_config`, and with `vision_` in front those of its `vision_config`.
    """

    name: str
    hidden_size: Annotated[int, Range(1, 1 << 16)]
    num_layers: Annotated[int, Range(1, 1 << 10)]
    num_attention_heads: Annotated[int, Range(1, 1 << 10)]
    num_key_value_heads: Annotated[int, Range(1, 1 << 10)]
    head_dim: Annotated[int, Range(1, 1 << 12)]
    vocab_size: Annotated[int, Range(1, 1 << 22)]
    vision_layers: Annotated[int, Range(1, 1 << 10)]
    vision_hidden_size: Annotated[int, Range(1, 1 << 16)]
    num_parameters: Annotated[int, Range(1, 1 << 50)]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything `bundle.json` says.

    `kv_cache` is the number format of the keys and values that are kept, None for the decoder's.
    """

    format_version: Annotated[int, Range(FORMAT_VERSION, FORMAT_VERSION)]
    model: ModelFacts
    device: Annotated[str, OneOf("cpu", "cuda", "tensorrt")]
    max_context: Context
    image: ImageSettings
    prompt: PromptSettings
    generation: GenerationSettings
    vision: Component
    projector: Component
    decoder: Component
    packing: Component | None
    token_lookup: Component | None
    pixels: Component | None
    sampling: Component | None
    embedding: Embedding | None
    tokenizer: str
    chat_template: str
    license: str
    provenance: dict[str, Any]
    engines: tuple[EngineFacts, ...]
    files: dict[str, FileFacts]
    probes: str | None = None
    media: MediaSettings | None = None
    kv_cache: Float | None = None

    @property
    def media_facts(self) -> MediaSettings:
        """Return what the bundle takes beside one picture; one of before this was known takes nothing else."""
        return NO_MEDIA_FACTS if self.media is None else self.media

    @property
    def kv_format(self) -> str:
        """Return the number format of the keys and values that are kept."""
        return self.kv_cache or self.decoder.compute

    @property
    def components(self) -> dict[str, Component]:
        """Return the networks by the names of their graphs.

        `packing` is there for GPUs, `embedding` for TensorRT alone, `pixels` and `sampling` for CUDA.
        """
        named = {
            "pixels": self.pixels,
            "vision": self.vision,
            "projector": self.projector,
            "packing": self.packing,
            "embedding": self.token_lookup,
            "decoder": self.decoder,
            "sampling": self.sampling,
        }
        return {name: component for name, component in named.items() if component is not None}

    @property
    def overflow_advice(self) -> str:
        """Return what to do where the decoder's numbers are not finite, in one sentence."""
        decoder = self.decoder
        if self.device == "cpu" or decoder.compute != "fp16":
            return "Run 'varco verify BUNDLE', or export the decoder in a wider precision."
        option = "--decoder" if decoder.precision.startswith("fp16") else "--vision"
        return (
            "The bundle computes in fp16, which ends at 65,504: if 'varco verify BUNDLE' finds its files as they were, "
            f"export it again with {option} bf16."
        )

    @property
    def kv_bytes_per_token(self) -> int:
        """Return the bytes of keys and values that one position occupies in all layers."""
        model = self.model
        element = ITEM_BYTES[self.kv_format]
        return 2 * model.num_layers * model.num_key_value_heads * model.head_dim * element


def cache_names(num_layers: int) -> list[str]:
    """Return the names of a decoder's caches, which a graph puts behind `past.` and `present.`."""
    return [f"{layer}.{kind}" for layer in range(num_layers) for kind in ("key", "value")]
