"""Checkpoint to quantized checkpoint: the one file that knows all stages."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.config.prompts import PromptAssets, prompts_of
from varco_export.progress import QuantizeProgress
from varco_export.quantize.activations import read_activations, write_activations
from varco_export.quantize.asset import write_assets
from varco_export.quantize.calibration import EncodedSample, encode_samples, read_samples
from varco_export.quantize.embeddings import embed_samples
from varco_export.quantize.layer import LINEARS, SHARED_INPUT, Decoder, layer_name, watched_inputs
from varco_export.quantize.linear import Hessian, quantize_linear
from varco_export.quantize.options import GROUP_SIZES, QuantizeOptions
from varco_export.quantize.scheme import make_scheme, quantization_config
from varco_export.quantize.shard import Stored, read_sizes, write_shard
from varco_export.quantize.weights import TORCH_DTYPES, read_weight
from varco_export.quantize.work import Work, check_target, resumable_folder
from varco_export.reading.names import canonical_name, disk_name
from varco_export.reading.shards import read_shards
from varco_export.reading.tensor import SAFETENSORS_DTYPES, Tensor
from varco_export.writing.json_file import write_json
from varco_runtime.dtypes import Array
from varco_runtime.errors import CheckpointError, UsageError
from varco_runtime.prompt.prompter import Prompter
from varco_runtime.prompt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

_TOWER = ("vision_tower.", "multi_modal_projector.", "image_newline")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a quantization.

    Args:
        folder: The new checkpoint.
        num_bytes: Bytes of its tensors.
        source_bytes: Bytes of the original's.
        num_samples: Calibration samples.
        num_tokens: Tokens in all of them.
    """

    folder: Path
    num_bytes: int
    source_bytes: int
    num_samples: int
    num_tokens: int


@dataclass(slots=True)
class _Run:
    """One run, with everything that all its stages need."""

    checkpoint: Checkpoint
    prompts: PromptAssets
    options: QuantizeOptions
    scheme: QuantizationScheme
    samples: list[EncodedSample]
    progress: QuantizeProgress
    device: torch.device

    @property
    def num_layers(self) -> int:
        return self.checkpoint.config.text.num_hidden_layers

    @property
    def lengths(self) -> list[int]:
        return [len(sample.ids) for sample in self.samples]


def quantize(source: str | Path, out: Path, options: QuantizeOptions, progress: QuantizeProgress) -> Outcome:
    """Quantize with checked options, and all libraries there: see `varco_export.quantize.quantize`."""
    check_target(out)
    run = _prepare(source, options, progress)
    with resumable_folder(out, _asked(run), run.num_layers + 2) as work:
        _quantize_layers(run, work)
        _copy_the_rest(run, work)
        num_bytes = _write_index(work)
        write_assets(
            work.checkpoint, run.checkpoint, run.prompts, options, quantization_config(options), _calibration(run)
        )
        work.publish()
    source_bytes = sum(tensor.nbytes for tensor in run.checkpoint.tensors.values())
    return Outcome(out, num_bytes, source_bytes, len(run.samples), sum(run.lengths))


# --- before the first byte --------------------------------------------------------------------------------------------


def _prepare(source: str | Path, options: QuantizeOptions, progress: QuantizeProgress) -> _Run:
    checkpoint = Checkpoint.open(source)
    config = checkpoint.config
    if config.raw.get("quantization_config") or not all(map(checkpoint.has, _weights_of(0))):
        raise CheckpointError(
            f"{checkpoint.folder.name} is quantised already, expected plain weights. Quantise the checkpoint that it "
            "was made from."
        )
    _check_group_size(checkpoint, options)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no such device. Leave it out, or install torch for CUDA.")
    prompts = prompts_of(checkpoint.folder, config)
    samples: list[EncodedSample] = []
    if options.calibration is not None:
        prompter = Prompter(prompts.chat_template, prompts.prompt, Tokenizer.from_json(prompts.tokenizer_json))
        found = read_samples(options.calibration, prompts.prompt.markup_tokens, options.max_samples)
        samples = encode_samples(found, prompter, config.image, config.text.max_position_embeddings)
        plural = "" if len(samples) == 1 else "s"
        num_tokens = sum(len(one.ids) for one in samples)
        progress.note(f"Calibrating with {len(samples)} sample{plural}, {num_tokens:,} tokens.")
    return _Run(checkpoint, prompts, options, make_scheme(options), samples, progress, torch.device(options.device))


def _weights_of(index: int) -> list[str]:
    return [f"{layer_name(index)}.{linear}.weight" for linear in LINEARS]


def _check_group_size(checkpoint: Checkpoint, options: QuantizeOptions) -> None:
    size = options.columns_per_scale
    widths = {name.split(".", 3)[3]: checkpoint.tensor(name).shape[1] for name in _weights_of(0)}
    odd = [name for name, width in widths.items() if size is not None and width % size]
    if odd:
        fitting = [str(one) for one in GROUP_SIZES if not any(width % one for width in widths.values())]
        advice = f"Expected one of: {', '.join(fitting)}." if fitting else "No group size fits; use --method fp8."
        raise UsageError(f"--group-size {size} does not divide the {widths[odd[0]]} columns of {odd[0]}. {advice}")


def _asked(run: _Run) -> dict[str, Any]:
    """Return everything that the result depends on: what a run must have in common with the one it continues."""
    digest = hashlib.sha256()
    for sample in run.samples:
        digest.update(json.dumps([sample.ids, sample.digest]).encode())
    shards = sorted({tensor.path for tensor in run.checkpoint.tensors.values()})
    return {
        "method": run.options.method,
        "bits": run.options.num_bits,
        "group size": run.options.columns_per_scale,
        "device": run.options.device,
        "checkpoint": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in shards],
        "calibration": digest.hexdigest() if run.samples else None,
        "version": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "llmcompressor")},
    }


# --- layers -----------------------------------------------------------------------------------------------------------


def _quantize_layers(run: _Run, work: Work) -> None:
    """Write a shard for every layer that has none yet."""
    done = next((index for index in range(run.num_layers) if not work.shard(index + 1).exists()), run.num_layers)
    if done:
        run.progress.note(f"Continuing an earlier run: {done} of {run.num_layers} layers are finished.")
    if run.samples and done == 0 and not work.activations(0).exists():
        _embed(run, work)
    decoder = Decoder(run.checkpoint.config.text, run.device) if run.samples else None
    with run.progress.stage("layers", run.num_layers, done) as advance:
        for index in range(done, run.num_layers):
            if decoder is None:
                write_shard(work.shard(index + 1), _layer_tensors(run, index, {}))
            else:
                _calibrated_layer(run, work, decoder, index)
            advance()
    work.keep_activations(None)


def _embed(run: _Run, work: Work) -> None:
    """Write what flows into the first layer."""
    embeds = embed_samples(run.checkpoint, run.samples, run.prompts.prompt.image_token_id, run.device)
    with run.progress.stage("pictures", len(run.samples)) as advance:

        def counted() -> Iterator[Array]:
            for sample in embeds:
                yield sample
                advance()

        write_activations(work.activations(0), counted())


def _calibrated_layer(run: _Run, work: Work, decoder: Decoder, index: int) -> None:
    """Measure one layer, quantize it and run on. Its shard comes last, and means that all is done."""
    width = run.checkpoint.config.text.hidden_size

    def inputs() -> Iterator[Array]:
        return read_activations(work.activations(index), run.lengths, width)

    layer = decoder.layer(run.checkpoint, index)
    hessians: dict[str, Hessian] = {}

    def watch(name: str, linear: torch.nn.Linear, values: torch.Tensor) -> None:
        if name not in hessians:
            hessians[name] = Hessian(linear)
        hessians[name].add(values, linear)

    with watched_inputs(layer, watch):
        for _ in decoder.run(layer, inputs()):
            pass
    tensors = _layer_tensors(run, index, hessians, layer)
    if index + 1 < run.num_layers:
        write_activations(work.activations(index + 1), decoder.run(layer, inputs()))
    write_shard(work.shard(index + 1), tensors)
    work.keep_activations(index + 1)


def _layer_tensors(
    run: _Run, index: int, hessians: dict[str, Hessian], layer: torch.nn.Module | None = None
) -> dict[str, Stored]:
    """Return the tensors of a layer's shard. The Hessians are used up; a `layer` gets the quantized weights."""
    prefix = f"{layer_name(index)}."
    names = [name for name in run.checkpoint.tensors if name.startswith(prefix)]
    linears = {f"{prefix}{linear}.weight": linear for linear in LINEARS}
    stored = {name: Stored.of_checkpoint(run.checkpoint.tensor(name)) for name in names if name not in linears}
    for name, linear in linears.items():
        weight = read_weight(run.checkpoint, name).to(run.device)
        dtype = TORCH_DTYPES[run.checkpoint.tensor(name).dtype]
        hessian = _take(hessians, linear).mean() if hessians else None
        found = quantize_linear(weight, dtype, run.scheme, run.options.format, hessian)
        if found.is_nearest:
            # At once: a run that continues this one knows nothing of it.
            run.progress.note(
                f"note: {name} was rounded to the nearest, since its Hessian cannot be inverted; more calibration "
                "samples may avoid that."
            )
        if layer is not None:
            _linear_of(layer, linear).weight.copy_(found.weight)
        stem = name.removesuffix("weight")
        stored |= {stem + last: Stored.of_torch(tensor) for last, tensor in found.tensors.items()}
    return {disk_name(name, "hf_old"): one for name, one in sorted(stored.items())}


def _linear_of(layer: torch.nn.Module, name: str) -> torch.nn.Linear:
    linear = layer.get_submodule(name)
    assert isinstance(linear, torch.nn.Linear), f"Bug: {name} is no linear"
    return linear


def _take(hessians: dict[str, Hessian], linear: str) -> Hessian:
    """Return the Hessian of a linear, and forget it when no later one shares its input."""
    shared = SHARED_INPUT[linear]
    later = LINEARS[LINEARS.index(linear) + 1 :]
    return hessians[shared] if any(SHARED_INPUT[other] == shared for other in later) else hessians.pop(shared)


# --- the rest ---------------------------------------------------------------------------------------------------------


def _copy_the_rest(run: _Run, work: Work) -> None:
    """Copy vision tower, projector and newline to one shard; embedding, final norm and head to the last."""
    layers = tuple(f"{layer_name(index)}." for index in range(run.num_layers))
    rest = [tensor for name, tensor in run.checkpoint.tensors.items() if not name.startswith(layers)]
    rest += _unused_tensors(run.checkpoint)
    tower = [tensor for tensor in rest if tensor.name.startswith(_TOWER)]
    text = [tensor for tensor in rest if not tensor.name.startswith(_TOWER)]
    with run.progress.stage("the rest", 2) as advance:
        for number, tensors in ((run.num_layers + 1, tower), (run.num_layers + 2, text)):
            if not work.shard(number).exists():
                named = {disk_name(tensor.name, "hf_old"): Stored.of_checkpoint(tensor) for tensor in tensors}
                write_shard(work.shard(number), named)
            advance()


def _unused_tensors(checkpoint: Checkpoint) -> Sequence[Tensor]:
    """Return tensors that nothing is computed from and that transformers looks for all the same.

    Buffers and a head that is tied are left out, and so is, coming from LLaVA-NeXT, what only its classes hold.
    """
    wanted = ("vision_tower.",) if checkpoint.config.family == "hf" else ("vision_tower.post_layernorm.",)
    found: list[Tensor] = []
    for entries in read_shards(checkpoint.folder).values():
        for entry in entries:
            name = canonical_name(entry.disk_name)
            if name in checkpoint.skipped and name.startswith(wanted) and not name.endswith("position_ids"):
                dtype = SAFETENSORS_DTYPES[entry.dtype]
                found.append(Tensor(name, dtype, entry.shape, entry.path, entry.offset))
    return found


def _write_index(work: Work) -> int:
    """Write model.safetensors.index.json and return the bytes of all tensors."""
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number in range(1, work.num_shards + 1):
        sizes = read_sizes(work.shard(number))
        weight_map |= dict.fromkeys(sizes, work.shard(number).name)
        total_bytes += sum(sizes.values())
    write_json(
        work.checkpoint / "model.safetensors.index.json",
        {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))},
    )
    return total_bytes


def _calibration(run: _Run) -> str:
    if not run.samples:
        return ""
    num_pictures = len({sample.digest for sample in run.samples} - {None})
    return f" Calibrated with {len(run.samples)} samples, {num_pictures} pictures, {sum(run.lengths)} tokens."
