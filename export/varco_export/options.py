"""What an export may be asked for, the checks of it, and what it means for one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.dialects.cuda import CudaDialect, HostRowsCudaDialect
from varco_export.dialects.dialect import Dialect
from varco_export.dialects.onnxruntime import OnnxRuntimeDialect
from varco_export.dialects.tensorrt import OPSET as TENSORRT_OPSET
from varco_export.dialects.tensorrt import TensorRtDialect
from varco_export.precision import (
    GPU_DEVICES,
    Precision,
    check_decoder_options,
    check_gpu_options,
    decoder_precision,
    gpu_precisions,
    vision_precision,
)
from varco_export.writing.graph import OPSET
from varco_runtime.errors import ExportError, UsageError

DEFAULT_MAX_CONTEXT = 10_240
"""The largest picture is 8,829 image tokens; prompt and 1,024 new tokens fit beside it."""

DIALECTS: dict[str, tuple[type[Dialect], int]] = {
    "cpu": (OnnxRuntimeDialect, OPSET),
    "cuda": (CudaDialect, OPSET),
    "tensorrt": (TensorRtDialect, TENSORRT_OPSET),
}
"""By device: the operators and their opset."""
EMBEDDING_PLACES = {"cpu": ("host",), "cuda": ("device", "host"), "tensorrt": ("device",)}
"""By device: where the token rows can lie; the first is the default."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What an export is asked for; the defaults are those of the command `varco export`.

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
        embedding: Where the token rows lie: `device`, `host`, or `auto`, which is the device's memory on a GPU.
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


@dataclass(frozen=True, slots=True)
class Plan:
    """What options mean for one checkpoint.

    `dialect` and `opset` are what all networks are written in, `decoder` the number formats of the language model,
    `vision` those of all other networks, and `embedding` is where the token rows lie, `device` or `host`.
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
    max_context = _max_context(options.max_context, checkpoint.config.text.max_position_embeddings)
    embedding = EMBEDDING_PLACES[options.device][0] if options.embedding == "auto" else options.embedding
    if options.device == "cuda" and embedding == "host":
        dialect = HostRowsCudaDialect
    return Plan(options.device, dialect, opset, decoder, vision, max_context, embedding)


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
    return own, vision_precision(options.vision)


def _max_context(asked: int | None, max_position_embeddings: int) -> int:
    """Return the longest context of the bundle: as asked, else 10,240, at most what the model was made for."""
    if asked is None:
        return min(DEFAULT_MAX_CONTEXT, max_position_embeddings)
    if not 16 <= asked <= max_position_embeddings:
        raise UsageError(
            f"--max-context {asked} is out of range. Expected 16 to {max_position_embeddings}, the model's maximum."
        )
    return asked
