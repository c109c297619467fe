"""Checkpoint to bundle: the one file that knows all stages of the export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.config.prompts import PromptAssets, prompts_of
from varco_export.dialects.dialect import Dialect
from varco_export.networks.decoder import emit_decoder
from varco_export.networks.embedding import emit_embedding
from varco_export.networks.packing import emit_packing
from varco_export.networks.pixels import emit_pixels
from varco_export.networks.projector import emit_projector
from varco_export.networks.sampling import emit_sampling
from varco_export.networks.vision import emit_vision
from varco_export.options import ExportOptions, Plan, check_options, image_settings, make_plan
from varco_export.precision import GPU_DEVICES, INTEGERS_IN_BF16, Precision, loses_sums
from varco_export.probes.make import PROBES_BELOW_PARAMETERS, write_probes
from varco_export.progress import SILENT, Progress
from varco_export.writing.graph import DTYPES, Graph
from varco_export.writing.hashed_file import HashedFile
from varco_export.writing.whole_folder import whole_folder
from varco_runtime import __version__
from varco_runtime.bundle.manifest import (
    FORMAT_VERSION,
    Component,
    Embedding,
    FileFacts,
    HeadRows,
    Manifest,
    ModelFacts,
)
from varco_runtime.bundle.opening import write_manifest
from varco_runtime.bundle.settings import ImageSettings

__all__ = ["ExportOptions", "export"]

_HEAD_WEIGHTS = ("weight_int8", "scales")
"""What an int8 output head is made of."""

Emit = Callable[[Dialect, Callable[[], None]], None]
"""Writes one network in a dialect's operators; calls its second argument after each step."""


def export(
    source: str | Path,
    target: Path,
    options: ExportOptions = ExportOptions(),  # noqa: B008 - frozen
    progress: Progress = SILENT,
) -> Manifest:
    """Write a bundle from a checkpoint. It is whole or absent: on an error nothing is left behind.

    Args:
        source: The checkpoint's folder, or a Hugging Face repository id.
        target: The bundle's folder, made here.
        options: What is asked for.
        progress: Who is told how far the export is.

    Returns:
        What the bundle's `bundle.json` says.

    Raises:
        UsageError: The options contradict each other or the checkpoint.
        CheckpointError: The checkpoint cannot be read; the message names the tensor or the setting.
        ExportError: The device cannot run this model, `target` exists, or the disk refuses.
    """
    check_options(options)
    checkpoint = Checkpoint.open(source, vision_source=options.vision_from)
    plan = make_plan(options, checkpoint)
    with whole_folder(target, options.overwrite) as folder:
        stages = _Stages(checkpoint, plan, folder, progress)
        prompts = stages.write_prompts()
        vision = stages.write_vision_networks()
        embedding = stages.write_embedding()
        language = stages.write_language_networks()
        if plan.embedding == "shared":
            embedding = stages.write_newline()
        checkpoint.finish()
        image = image_settings(options, checkpoint.config, prompts.prompt.markup_tokens)
        manifest = stages.make_manifest(prompts, vision | language, embedding, image)
        automatic = checkpoint.num_parameters < PROBES_BELOW_PARAMETERS
        if automatic if options.probes is None else options.probes:
            manifest = write_probes(checkpoint, folder, manifest, progress)
        write_manifest(folder, manifest)
    return manifest


class _Stages:
    """The stages of one export, which write into `folder` and note the size and hash of every file."""

    def __init__(self, checkpoint: Checkpoint, plan: Plan, folder: Path, progress: Progress) -> None:
        self._checkpoint = checkpoint
        self._config = checkpoint.config
        self._plan = plan
        self._folder = folder
        self._progress = progress
        self._files: dict[str, FileFacts] = {}
        self._head_offsets: tuple[int, ...] = ()

    def write_prompts(self) -> PromptAssets:
        """Write the tokenizer and the chat template."""
        assets = prompts_of(self._checkpoint.folder, self._config)
        for name, text in (("tokenizer.json", assets.tokenizer_json), ("chat_template.jinja", assets.chat_template)):
            with HashedFile(self._folder / name) as file:
                file.write(text.encode())
            self._files[name] = file.facts()
        return assets

    # -- networks ---------------------------------------------------------------------------------------------------

    def write_vision_networks(self) -> dict[str, Component]:
        """Write the graphs that make image tokens of a picture, and return them by the manifest's names."""
        checkpoint, precision = self._checkpoint, self._plan.vision
        num_layers = self._config.vision.num_hidden_layers
        networks = {
            "vision": self._network("vision", precision, num_layers, partial(emit_vision, checkpoint)),
            "projector": self._network("projector", precision, 1, partial(emit_projector, checkpoint)),
        }
        if self._plan.device in GPU_DEVICES:  # which pack patches themselves
            networks["packing"] = self._network("packing", precision, 1, partial(emit_packing, checkpoint))
        return networks

    def write_language_networks(self) -> dict[str, Component]:
        """Write the graphs that answer, and those around them that the device needs; by the manifest's names."""
        networks = {}
        if self._plan.device == "tensorrt":
            networks["token_lookup"] = self._write_token_lookup()
        networks["decoder"] = self._write_decoder()
        if self._plan.device == "cuda":
            networks |= self._write_cuda_networks()
        return networks

    def _write_token_lookup(self) -> Component:
        checkpoint = self._checkpoint
        made = self._network("embedding", self._plan.vision, 1, partial(emit_embedding, checkpoint), "token lookup")
        return replace(made, weight_bytes=self._row_bytes)

    def _write_decoder(self) -> Component:
        checkpoint, plan, text = self._checkpoint, self._plan, self._config.text

        def emit(ops: Dialect, step: Callable[[], None]) -> None:
            emit_decoder(checkpoint, ops, plan.max_context, step)
            if plan.embedding == "shared":
                self._head_offsets = tuple(ops.graph.weight_offset(f"lm_head.{kind}") for kind in _HEAD_WEIGHTS)

        made = self._network("decoder", plan.decoder, text.num_hidden_layers + 1, emit)
        if plan.device == "cuda" and plan.embedding == "device":
            # The decoder holds the token rows, of which a step reads one.
            unread = (text.vocab_size - 1) * self._row_bytes
            made = replace(made, weight_bytes=made.weight_bytes - unread)
        return made

    def _write_cuda_networks(self) -> dict[str, Component]:
        """Write what CUDA does itself before the vision tower and after the decoder, in exact types."""
        exact, config = Precision("fp32", "fp32", "fp32"), self._config
        return {
            "pixels": self._network("pixels", exact, 1, lambda ops, step: emit_pixels(ops.graph, config.image, step)),
            "sampling": self._network(
                "sampling", exact, 1, lambda ops, step: emit_sampling(ops.graph, config.text.vocab_size, step)
            ),
        }

    def _network(self, name: str, precision: Precision, steps: int, emit: Emit, label: str = "") -> Component:
        """Write the graph `name`, shown as `label`, and its weights; `emit` takes `steps` steps."""
        with (
            self._progress.component(label or name, steps) as advance,
            Graph(name, self._folder, self._plan.opset) as graph,
        ):
            emit(self._plan.dialect(graph, precision), advance)
            self._files.update(graph.save())
        return Component(
            graph.path.name, graph.data_path.name, precision.compute, precision.describe(), graph.weight_bytes
        )

    @property
    def _row_bytes(self) -> int:
        """Return the bytes of one token's row in a graph."""
        return self._config.text.hidden_size * DTYPES[self._plan.vision.compute][1].itemsize

    # -- token rows and manifest ------------------------------------------------------------------------------------

    def write_embedding(self) -> Embedding | None:
        """Write the token rows, and image_newline as one more row, where the host looks them up; else return None.

        They stay in the type that they are stored in, the wider one of the two.
        """
        if self._plan.embedding != "host":
            return None
        rows = self._checkpoint.tensor("language_model.embed_tokens.weight")
        newline = self._checkpoint.tensor("image_newline")
        dtype = rows.dtype if rows.dtype == newline.dtype else "fp32"
        numpy_type = DTYPES[dtype][1]
        name = "embedding.bin"
        with self._progress.component("embedding", 1) as advance:
            with HashedFile(self._folder / name) as file:
                for tensor in (rows, newline):
                    for block in tensor.blocks():
                        file.write(np.ascontiguousarray(block, dtype=numpy_type).view(np.uint8).reshape(-1).data)
            self._files[name] = file.facts()
            advance()
        return Embedding(name, dtype, rows.shape[0] + 1, rows.shape[1])

    def write_newline(self) -> Embedding:
        """Write image_newline alone, and return where the token rows are in the output head, which is written."""
        newline, text, plan = self._checkpoint.tensor("image_newline"), self._config.text, self._plan
        name = "embedding.bin"
        with HashedFile(self._folder / name) as file:
            row = np.ascontiguousarray(newline.read(), dtype=DTYPES[newline.dtype][1])
            file.write(row.view(np.uint8).reshape(-1).data)
        self._files[name] = file.facts()
        values, scales = self._head_offsets
        head = HeadRows(
            file="decoder.onnx.data",
            values_offset=values,
            scales_offset=scales,
            block_size=plan.decoder.block_size,
            has_nibbles=not plan.decoder.int8_activations,
        )
        return Embedding(name, newline.dtype, text.vocab_size + 1, text.hidden_size, head)

    def make_manifest(
        self, prompts: PromptAssets, networks: dict[str, Component], embedding: Embedding | None, image: ImageSettings
    ) -> Manifest:
        """Return what `bundle.json` is to say of the files written so far."""
        provenance, plan = self._checkpoint.provenance, self._plan
        costs = [INTEGERS_IN_BF16] if loses_sums(plan.device, plan.decoder) else []
        return Manifest(
            format_version=FORMAT_VERSION,
            model=_model_facts(self._checkpoint),
            device=plan.device,
            max_context=plan.max_context,
            image=image,
            prompt=prompts.prompt,
            generation=prompts.generation,
            vision=networks["vision"],
            projector=networks["projector"],
            decoder=networks["decoder"],
            packing=networks.get("packing"),
            token_lookup=networks.get("token_lookup"),
            pixels=networks.get("pixels"),
            sampling=networks.get("sampling"),
            embedding=embedding,
            tokenizer="tokenizer.json",
            chat_template="chat_template.jinja",
            license=str(provenance["license"]),
            provenance={
                **provenance,
                "notes": [*self._config.notes, *prompts.notes, *costs],
                "exported_by": f"varco-edge {__version__}",
            },
            engines=(),
            files=self._files,
            media=prompts.media,
            kv_cache=plan.decoder.cache,
        )


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
