"""Checkpoint to bundle: the one file that knows all stages of the export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from varco_export.checkpoint import Checkpoint
from varco_export.decoder import emit_decoder
from varco_export.dialect import Dialect
from varco_export.dialect_cuda import CudaDialect, HostRowsCudaDialect
from varco_export.dialect_onnxruntime import OnnxRuntimeDialect
from varco_export.dialect_tensorrt import OPSET as TENSORRT_OPSET
from varco_export.dialect_tensorrt import TensorRtDialect
from varco_export.embedding import emit_embedding
from varco_export.graph import DTYPES, OPSET, Graph
from varco_export.output import HashedFile, whole_folder
from varco_export.packing import emit_packing
from varco_export.pixels import emit_pixels
from varco_export.precision import Precision, check_decoder_options, decoder_precision, vision_precision
from varco_export.precision_gpu import (
    GPU_DEVICES,
    INTEGERS_IN_BF16,
    check_gpu_options,
    gpu_precisions,
    loses_sums,
)
from varco_export.probes import PROBES_BELOW_PARAMETERS, write_probes
from varco_export.progress import Progress
from varco_export.projector import emit_projector
from varco_export.prompts import load_prompts
from varco_export.sampling import emit_sampling
from varco_export.vision import emit_vision
from varco_runtime import __version__
from varco_runtime.bundle import write_manifest
from varco_runtime.errors import UsageError
from varco_runtime.manifest import FORMAT_VERSION, Component, Embedding, FileFacts, Manifest, ModelFacts

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
    """The command line's options, with its defaults."""

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


def export(source: str | Path, target: Path, options: ExportOptions, progress: Progress) -> Manifest:
    """Write the bundle `target` from a checkpoint folder or Hugging Face repository.

    Raises `CheckpointError` (naming the tensor or setting), `UsageError` or `ExportError`; then nothing is left behind.
    """
    _check_precisions(options)
    checkpoint = Checkpoint.open(source, vision_source=options.vision_from)
    decoder, vision = _precisions(options, checkpoint)
    max_context = choose_max_context(options.max_context, checkpoint.config.text.max_position_embeddings)
    with whole_folder(target, options.overwrite) as folder:
        return _write(checkpoint, folder, decoder, vision, max_context, options, progress)


def _check_precisions(options: ExportOptions) -> None:
    """Refuse what no checkpoint could be exported with."""
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


def _precisions(options: ExportOptions, checkpoint: Checkpoint) -> tuple[Precision, Precision]:
    """The decoder's formats, and those of the other networks."""
    decoder, lm_head, block_size, stored = options.decoder, options.lm_head, options.block_size, checkpoint.stored
    if options.device in GPU_DEVICES:
        weights = checkpoint.tensors["language_model.embed_tokens.weight"].dtype
        return gpu_precisions(options.device, decoder, lm_head, block_size, options.vision, weights, stored)
    own = decoder_precision(decoder, lm_head, block_size, options.activations, options.device, stored=stored)
    return own, vision_precision(options.vision)


def choose_max_context(asked: int | None, max_position_embeddings: int) -> int:
    """The longest context of the bundle: as asked, else 10,240, at most what the model was made for."""
    if asked is None:
        return min(DEFAULT_MAX_CONTEXT, max_position_embeddings)
    if not 16 <= asked <= max_position_embeddings:
        raise UsageError(
            f"--max-context {asked} is out of range. Expected 16 to {max_position_embeddings}, the model's maximum."
        )
    return asked


def _write(
    checkpoint: Checkpoint,
    folder: Path,
    decoder: Precision,
    vision: Precision,
    max_context: int,
    options: ExportOptions,
    progress: Progress,
) -> Manifest:
    config = checkpoint.config
    files: dict[str, FileFacts] = {}
    dialect, opset = DIALECTS[options.device]
    place = EMBEDDING_PLACES[options.device][0] if options.embedding == "auto" else options.embedding
    if options.device == "cuda" and place == "host":
        dialect = HostRowsCudaDialect

    def network(
        name: str,
        precision: Precision,
        steps: int,
        emit: Callable[[Dialect, Callable[[], None]], None],
        label: str | None = None,
    ) -> Component:
        with progress.component(label or name, steps) as advance, Graph(name, folder, opset) as graph:
            emit(dialect(graph, precision), advance)
            files.update(graph.save())
        return Component(
            graph.path.name, graph.data_path.name, precision.compute, precision.describe(), graph.weight_bytes
        )

    assets = load_prompts(
        checkpoint.folder,
        family=config.family,
        image_token_id=config.image_token_id,
        eos_token_id=config.eos_token_id,
        vocab_size=config.text.vocab_size,
    )
    for name, text in (("tokenizer.json", assets.tokenizer_json), ("chat_template.jinja", assets.chat_template)):
        with HashedFile(folder / name) as file:
            file.write(text.encode())
        files[name] = file.facts()

    vision_component = network(
        "vision", vision, config.vision.num_hidden_layers, lambda ops, advance: emit_vision(checkpoint, ops, advance)
    )
    projector_component = network("projector", vision, 1, lambda ops, advance: emit_projector(checkpoint, ops, advance))
    embedding = None
    if place == "host":
        with progress.component("embedding", 1) as advance:
            embedding = write_embedding(checkpoint, folder, files)
            advance()
    packing = token_lookup = pixels = sampling = None
    row_bytes = config.text.hidden_size * DTYPES[vision.compute][1].itemsize
    if options.device in GPU_DEVICES:  # which pack patches themselves
        packing = network("packing", vision, 1, lambda ops, advance: emit_packing(checkpoint, ops, advance))
    if options.device == "tensorrt":
        token_lookup = network(
            "embedding", vision, 1, lambda ops, advance: emit_embedding(checkpoint, ops, advance), label="token lookup"
        )
        token_lookup = replace(token_lookup, weight_bytes=row_bytes)
    decoder_component = network(
        "decoder",
        decoder,
        config.text.num_hidden_layers + 1,
        lambda ops, advance: emit_decoder(checkpoint, ops, max_context, advance),
    )
    if options.device == "cuda":
        exact = Precision("fp32", "fp32", "fp32")
        pixels = network("pixels", exact, 1, lambda ops, advance: emit_pixels(ops.graph, config.image, advance))
        sampling = network(
            "sampling", exact, 1, lambda ops, advance: emit_sampling(ops.graph, config.text.vocab_size, advance)
        )
        if place == "device":  # the decoder holds the token rows, of which a step reads one
            unread = (config.text.vocab_size - 1) * row_bytes
            decoder_component = replace(decoder_component, weight_bytes=decoder_component.weight_bytes - unread)
    checkpoint.finish()

    manifest = Manifest(
        format_version=FORMAT_VERSION,
        model=_model_facts(checkpoint),
        device=options.device,
        max_context=max_context,
        image=config.image,
        prompt=assets.prompt,
        generation=assets.generation,
        vision=vision_component,
        projector=projector_component,
        decoder=decoder_component,
        packing=packing,
        token_lookup=token_lookup,
        pixels=pixels,
        sampling=sampling,
        embedding=embedding,
        tokenizer="tokenizer.json",
        chat_template="chat_template.jinja",
        license=str(checkpoint.provenance["license"]),
        provenance=_provenance(checkpoint, decoder, options.device),
        engines=(),
        files=files,
    )
    automatic = checkpoint.num_parameters < PROBES_BELOW_PARAMETERS
    if automatic if options.probes is None else options.probes:
        manifest = write_probes(checkpoint, folder, manifest, progress)
    write_manifest(folder, manifest)
    return manifest


def _provenance(checkpoint: Checkpoint, decoder: Precision, device: str) -> dict[str, Any]:
    """Return where the bundle comes from, and notes for whoever exports it."""
    facts = {**checkpoint.provenance, "exported_by": f"varco-edge {__version__}"}
    if loses_sums(device, decoder):
        facts["notes"] = [*facts["notes"], INTEGERS_IN_BF16]
    return facts


def write_embedding(checkpoint: Checkpoint, folder: Path, files: dict[str, FileFacts]) -> Embedding:
    """Write the token rows as they are stored, and image_newline as one more row, in the wider type of the two."""
    rows, newline = checkpoint.tensor("language_model.embed_tokens.weight"), checkpoint.tensor("image_newline")
    dtype = rows.dtype if rows.dtype == newline.dtype else "fp32"
    numpy_type = DTYPES[dtype][1]
    name = "embedding.bin"
    with HashedFile(folder / name) as file:
        for tensor in (rows, newline):
            for block in tensor.blocks():
                file.write(np.ascontiguousarray(block, dtype=numpy_type).view(np.uint8).reshape(-1).data)
    files[name] = file.facts()
    return Embedding(name, dtype, rows.shape[0] + 1, rows.shape[1])


def _model_facts(checkpoint: Checkpoint) -> ModelFacts:
    text, vision = checkpoint.config.text, checkpoint.config.vision
    return ModelFacts(
        name=str(checkpoint.provenance["source"]),
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        vocab_size=text.vocab_size,
        vision_layers=vision.num_hidden_layers,
        vision_hidden_size=vision.hidden_size,
        num_parameters=checkpoint.num_parameters,
    )
