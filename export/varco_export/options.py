"""Options of an export: their checks, and their meaning for one checkpoint."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.config.model_config import ModelConfig
from varco_export.config.tiling import MAX_GRID_TILES, preset_tiling
from varco_export.dialects.cuda import CudaDialect, HostRowsCudaDialect
from varco_export.dialects.dialect import Dialect
from varco_export.dialects.onnxruntime import OnnxRuntimeDialect
from varco_export.dialects.tensorrt import OPSET as TENSORRT_OPSET
from varco_export.dialects.tensorrt import TensorRtDialect
from varco_export.precision import (
    FLOATS,
    GPU_DEVICES,
    Precision,
    check_decoder_options,
    check_gpu_options,
    choose,
    decoder_precision,
    gpu_precisions,
    vision_precision,
)
from varco_export.writing.graph import OPSET
from varco_runtime.bundle.settings import MAX_LONG_SIDE_PX, ImageSettings
from varco_runtime.errors import ExportError, UsageError
from varco_runtime.markup.questions import OCR_PROMPT

DEFAULT_MAX_CONTEXT = 10_240
"""The largest picture is 8,829 image tokens; prompt and 1,024 new tokens fit beside it."""

MAX_CONTEXT_OF_16 = 16_384
"""The same for 16 tiles, whose largest picture is 15,000 image tokens."""
OCR_LONG_SIDE_PX = 2304
"""What the card of VARCO-VISION-2.0-1.7B-OCR scales pictures up to."""

DIALECTS: dict[str, tuple[type[Dialect], int]] = {
    "cpu": (OnnxRuntimeDialect, OPSET),
    "cuda": (CudaDialect, OPSET),
    "tensorrt": (TensorRtDialect, TENSORRT_OPSET),
}
"""By device: the operators and their opset."""
EMBEDDING_PLACES = {"cpu": ("host", "shared"), "cuda": ("device", "host"), "tensorrt": ("device",)}
"""By device: where the token rows can lie; the first is the default."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Options of an export, with the defaults of the command `varco export`.

    Args:
        device: Where the bundle will run: `cpu`, `cuda` or `tensorrt`.
        decoder: Format of the language model's weights: `fp32`, `fp16`, `bf16`, `int8`, `int4` or `fp8`. `auto` keeps a
            quantized checkpoint's format; a plain one stays exact: fp32 on a CPU, fp16 or bf16 as stored on a GPU.
        vision: Format of the vision tower and the projector: `fp32`, `fp16`, `bf16` or `int8`. `auto` is fp32 on a CPU,
            and on a GPU the type that the decoder computes in.
        lm_head: Format of the output head, as for `decoder`. `auto` is int8 on a CPU if the decoder is int8 or int4,
            the checkpoint's own format if its head is quantized, and a float otherwise.
        block_size: Input features that share a scale where weights are rounded to int8 or int4: 32, 64 or 128.
        activations: `float` is exact; `int8` rounds the inputs of int8 and int4 linears, which is fast on a CPU.
        max_context: Most tokens of prompt, picture and answer together; None is 10,240, or the model's maximum if that
            is less.
        overwrite: Whether a bundle in the place of the new one is replaced.
        vision_from: Folder or repository id of the checkpoint that has the vision side, where the language model was
            quantized apart.
        probes: Whether the bundle gets acceptance probes; None is yes below a billion parameters.
        embedding: Where the token rows lie: `device`, `host`, or `auto`, which is the device's memory on a GPU. On a
            CPU `shared` reads them from an int8 output head, which the checkpoint must have tied to them; `auto` does
            so for Qwen3.
        kv_cache: Type of the keys and values that are kept, `fp32` or `fp16`; `auto` is what the decoder computes in.
            On a CPU alone.
        max_grid_tiles: A tiling preset of `MAX_GRID_TILES`; None is the checkpoint's own tiling.
        ocr_long_side: Pixels to which the long side of a smaller picture is scaled up before its text is read, 0 for
            none; None is 2304 for a Qwen3 language model with the markup, 0 else.
    """

    device: str = "cpu"
    decoder: str = "auto"
    vision: str = "auto"
    lm_head: str = "auto"
    block_size: int = 32
    activations: str = "float"
    max_context: int | None = None
    overwrite: bool = False
    vision_from: str | None = None
    probes: bool | None = None
    embedding: str = "auto"
    max_grid_tiles: int | None = None
    ocr_long_side: int | None = None
    kv_cache: str = "auto"


@dataclass(frozen=True, slots=True)
class Plan:
    """The meaning of options for one checkpoint.

    Args:
        device: Where the bundle will run.
        dialect: The operators that all networks are written in.
        opset: The version of ONNX's operators.
        decoder: Number formats of the language model.
        vision: Number formats of all other networks.
        max_context: Most tokens of prompt, picture and answer together.
        embedding: Where the token rows lie, `device`, `host` or `shared`: in the output head.
    """

    device: str
    dialect: type[Dialect]
    opset: int
    decoder: Precision
    vision: Precision
    max_context: int
    embedding: str


def check_options(options: ExportOptions) -> None:
    """Check what can be checked before a checkpoint is opened.

    Raises:
        UsageError: No checkpoint could be exported so.
    """
    asked = options.decoder, options.lm_head, options.block_size, options.activations
    if options.device in GPU_DEVICES:
        check_gpu_options(options.device, *asked, options.vision)
    else:
        check_decoder_options(*asked, options.device)
        vision_precision(options.vision)
    if options.max_grid_tiles is not None and options.max_grid_tiles not in MAX_GRID_TILES:
        raise UsageError(
            f"--max-grid-tiles {options.max_grid_tiles} is no preset. Expected one of: "
            f"{', '.join(map(str, MAX_GRID_TILES))}; leave it out for the checkpoint's own tiling."
        )
    if options.ocr_long_side is not None and not 0 <= options.ocr_long_side <= MAX_LONG_SIDE_PX:
        raise UsageError(
            f"--ocr-long-side {options.ocr_long_side} is out of range. Expected pixels, at most {MAX_LONG_SIDE_PX}, or "
            "0 for pictures as they are."
        )
    choose(options.kv_cache, "--kv-cache", ("auto", *FLOATS))
    if options.kv_cache != "auto" and options.device != "cpu":
        raise UsageError(
            f"--kv-cache {options.kv_cache} is for --device cpu, a GPU keeps what it computes in. Leave it out."
        )
    places = EMBEDDING_PLACES[options.device]
    if options.embedding not in ("auto", *places):
        raise UsageError(
            f"--embedding {options.embedding} does not go with --device {options.device}. Expected one of: "
            f"{', '.join(('auto', *places))}."
        )


def make_plan(options: ExportOptions, checkpoint: Checkpoint) -> Plan:
    """Return what checked options mean for a checkpoint.

    Raises:
        UsageError: The options do not go with this checkpoint.
        ExportError: The device cannot run this model.
    """
    dialect, opset = DIALECTS[options.device]
    _check_head_dim(checkpoint, options.device)
    decoder, vision = _precisions(options, checkpoint)
    max_context = _max_context(options, checkpoint.config.text.max_position_embeddings)
    embedding = _embedding_place(options, checkpoint, decoder)
    if options.device == "cuda" and embedding == "host":
        dialect = HostRowsCudaDialect
    return Plan(options.device, dialect, opset, decoder, vision, max_context, embedding)


def _embedding_place(options: ExportOptions, checkpoint: Checkpoint, decoder: Precision) -> str:
    """Return where the token rows lie.

    An int8 head that is tied to them serves a Qwen3 model for both: it spares the rows, a third of the bundle of a 1.7B
    in int4, and rounds them to a hundredth of what int4 does. Qwen2 bundles stay what they were unless asked.
    """
    text, stored = checkpoint.config.text, checkpoint.stored
    is_rounded_here = decoder.head == "int8" and (stored is None or stored.head is None)
    can_share = text.tie_word_embeddings and is_rounded_here
    if options.embedding == "shared" and not can_share:
        if not text.tie_word_embeddings:
            reason = "this checkpoint's output head is not tied to its token rows. Leave it out."
        elif stored is not None and stored.head is not None:
            reason = "this checkpoint's output head is quantised already. Leave it out."
        else:
            reason = f"the output head is in {decoder.head}, expected int8. Add --decoder int4 or --decoder int8."
        raise UsageError(f"--embedding shared reads token rows from an int8 output head: {reason}")
    if options.embedding != "auto":
        return options.embedding
    if options.device == "cpu" and can_share and text.qk_norm:
        return "shared"
    return EMBEDDING_PLACES[options.device][0]


def _check_head_dim(checkpoint: Checkpoint, device: str) -> None:
    """Refuse a language model for whose attention the device's operators have no kernel."""
    head_dim, unit = checkpoint.config.text.head_dim, DIALECTS[device][0].head_dim_unit
    if head_dim % unit:
        raise ExportError(
            f"The language model's attention heads have {head_dim} features, expected a multiple of {unit}: "
            f"onnxruntime's GroupQueryAttention, which --device {device} runs on, has no kernel for others. Export "
            "another model."
        )


def _precisions(options: ExportOptions, checkpoint: Checkpoint) -> tuple[Precision, Precision]:
    """Return the decoder's formats, and those of the other networks."""
    decoder, lm_head, block_size, stored = options.decoder, options.lm_head, options.block_size, checkpoint.stored
    if options.device in GPU_DEVICES:
        weights = checkpoint.tensors["language_model.embed_tokens.weight"].dtype
        return gpu_precisions(options.device, decoder, lm_head, block_size, options.vision, weights, stored)
    own = decoder_precision(decoder, lm_head, block_size, options.activations, options.device, stored=stored)
    if options.kv_cache == "fp32" and own.compute == "fp16":
        raise UsageError("--kv-cache fp32 does not go with --decoder fp16, which keeps fp16. Leave one of them out.")
    if options.kv_cache not in ("auto", own.compute):
        own = replace(own, cache=options.kv_cache)
    return own, vision_precision(options.vision)


def _max_context(options: ExportOptions, max_position_embeddings: int) -> int:
    """Return the longest context of the bundle: as asked, else what holds the largest picture, at most what the model
    was made for."""
    asked = options.max_context
    if asked is None:
        default = MAX_CONTEXT_OF_16 if options.max_grid_tiles == 16 else DEFAULT_MAX_CONTEXT
        return min(default, max_position_embeddings)
    if not 16 <= asked <= max_position_embeddings:
        raise UsageError(
            f"--max-context {asked} is out of range. Expected 16 to {max_position_embeddings}, the model's maximum."
        )
    return asked


# --- pictures ---------------------------------------------------------------------------------------------------------


def image_settings(options: ExportOptions, config: ModelConfig, markup_tokens: Collection[str]) -> ImageSettings:
    """Return how the bundle makes tiles and image tokens of pictures.

    Args:
        options: What is asked for.
        config: The checkpoint.
        markup_tokens: The markup that its tokenizer has.
    """
    image = config.image
    if options.max_grid_tiles is not None:
        image = preset_tiling(image, options.max_grid_tiles)
    long_side = options.ocr_long_side
    if long_side is None:
        long_side = OCR_LONG_SIDE_PX if config.text.qk_norm and OCR_PROMPT in markup_tokens else 0
    return replace(image, ocr_long_side_px=long_side or None)
