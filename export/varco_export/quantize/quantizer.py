"""Checkpoint to quantized checkpoint: the one file that knows all stages."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.config.prompts import PromptAssets, prompts_of
from varco_export.progress import QuantizeProgress
from varco_export.quantize.asset import write_assets
from varco_export.quantize.calibration import EncodedSample, encode_samples, read_samples
from varco_export.quantize.drawn import drawn_samples
from varco_export.quantize.head import finish_head
from varco_export.quantize.layer import LINEARS, layer_name
from varco_export.quantize.layers import quantize_layers
from varco_export.quantize.options import GROUP_SIZES, QuantizeOptions
from varco_export.quantize.report import make_report
from varco_export.quantize.rest import copy_the_rest, write_index
from varco_export.quantize.rotated import rotated, untied
from varco_export.quantize.run import Run, hold_out
from varco_export.quantize.scheme import make_head_scheme, make_scheme, quantization_config
from varco_export.quantize.work import check_target, resumable_folder
from varco_export.writing.json_file import write_json
from varco_runtime.errors import CheckpointError, InputError, UsageError
from varco_runtime.prompt.prompter import Prompter
from varco_runtime.prompt.tokenizer import Tokenizer

REPORT = "quantization.json"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a quantization.

    Args:
        folder: The new checkpoint.
        num_bytes: Bytes of its tensors.
        source_bytes: Bytes of the original's.
        num_samples: Calibration samples.
        num_tokens: Tokens in all of them.
        report: What was asked for and measured; the file `quantization.json`.
    """

    folder: Path
    num_bytes: int
    source_bytes: int
    num_samples: int
    num_tokens: int
    report: Mapping[str, Any]


def quantize(source: str | Path, out: Path, options: QuantizeOptions, progress: QuantizeProgress) -> Outcome:
    """Quantize with checked options, and all libraries there: see `varco_export.quantize.quantize`."""
    check_target(out)
    original, run = _prepare(source, options, progress)
    with resumable_folder(out, _asked(run), run.num_layers + 2) as work:
        quantize_layers(run, work)
        done = work.shard(work.num_shards).exists()
        copy_the_rest(run, work, None if done else finish_head(run, work))
        num_bytes = write_index(work)
        report = make_report(run, work)
        sentence = _calibration(run)
        write_assets(work.checkpoint, run.checkpoint, run.prompts, options, quantization_config(options), sentence)
        write_json(work.checkpoint / REPORT, report)
        work.publish()
    source_bytes = sum(tensor.nbytes for tensor in original.tensors.values())
    return Outcome(out, num_bytes, source_bytes, len(run.samples), sum(len(one.ids) for one in run.samples), report)


# --- before the first byte --------------------------------------------------------------------------------------------


def _prepare(source: str | Path, options: QuantizeOptions, progress: QuantizeProgress) -> tuple[Checkpoint, Run]:
    """Return the original, and a run on it."""
    original = Checkpoint.open(source)
    config = original.config
    if config.raw.get("quantization_config") or not all(map(original.has, _weights_of(0))):
        raise CheckpointError(
            f"{original.folder.name} is quantised already, expected plain weights. Quantise the checkpoint that it "
            "was made from."
        )
    _check_group_size(original, options)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no such device. Leave it out, or install torch for CUDA.")
    checkpoint = original
    if options.is_rotated:
        checkpoint = rotated(original, options.seed)
    elif options.lm_head != "plain":
        checkpoint = untied(original)
    if config.text.tie_word_embeddings and not checkpoint.config.text.tie_word_embeddings:
        table = original.tensor("lm_head.weight")
        progress.note(
            f"note: the head was tied to the embedding and becomes one of its own, {table.nbytes / 1e6:,.0f} MB before "
            "it is quantised; --no-rotate with --lm-head plain keeps it tied."
        )
    prompts = prompts_of(checkpoint.folder, config)
    samples: list[EncodedSample] = []
    held: list[EncodedSample] = []
    if options.is_calibrated:
        samples, held = hold_out(_encoded(original, prompts, options))
        plural = "" if len(samples) == 1 else "s"
        num_tokens = sum(len(one.ids) for one in samples)
        _check_tokens(original, num_tokens)
        progress.note(f"Calibrating with {len(samples)} sample{plural}, {num_tokens:,} tokens.")
    scheme = None if options.method == "none" else make_scheme(options)
    head_scheme = make_head_scheme(options)
    device = torch.device(options.device)
    return original, Run(checkpoint, prompts, options, scheme, head_scheme, samples, held, progress, device)


def _encoded(checkpoint: Checkpoint, prompts: PromptAssets, options: QuantizeOptions) -> list[EncodedSample]:
    """Return the calibration samples, the user's or the project's own."""
    config, markup = checkpoint.config, prompts.prompt.markup_tokens
    prompter = Prompter(prompts.chat_template, prompts.prompt, Tokenizer.from_json(prompts.tokenizer_json))
    limit = config.text.max_position_embeddings
    if options.calibration is not None:
        found = read_samples(options.calibration, markup, options.sample_limit)
        return encode_samples(found, prompter, config.image, limit)
    drawn = drawn_samples(markup, options.sample_limit, config.image.tile_px)
    return [one for one in encode_samples(drawn, prompter, config.image, None) if len(one.ids) <= limit]


def _weights_of(index: int) -> list[str]:
    return [f"{layer_name(index)}.{linear}.weight" for linear in LINEARS]


def _widths(checkpoint: Checkpoint) -> dict[str, int]:
    """Return the input features of each linear of a layer."""
    return {name.split(".", 3)[3]: checkpoint.tensor(name).shape[1] for name in _weights_of(0)}


def _check_tokens(checkpoint: Checkpoint, num_tokens: int) -> None:
    """Refuse calibration with fewer tokens than the widest linear has inputs: its Hessian would be singular."""
    name, width = max(_widths(checkpoint).items(), key=lambda pair: pair[1])
    if num_tokens < width:
        raise InputError(
            f"The calibration has {num_tokens} tokens, expected {width} at least, one for each input of {name}. Add "
            "pictures or texts, or raise --samples."
        )


def _check_group_size(checkpoint: Checkpoint, options: QuantizeOptions) -> None:
    size = options.columns_per_scale
    widths = _widths(checkpoint)
    odd = [name for name, width in widths.items() if size is not None and width % size]
    if odd:
        fitting = [str(one) for one in GROUP_SIZES if not any(width % one for width in widths.values())]
        advice = f"Expected one of: {', '.join(fitting)}." if fitting else "No group size fits; use --method fp8."
        raise UsageError(f"--group-size {size} does not divide the {widths[odd[0]]} columns of {odd[0]}. {advice}")


def _asked(run: Run) -> dict[str, Any]:
    """Return everything that the result depends on: what a run must have in common with the one it continues."""
    digest, options = hashlib.sha256(), run.options
    for sample in (*run.samples, *run.held):
        digest.update(json.dumps([sample.ids, sample.digest]).encode())
    shards = sorted({tensor.path for tensor in run.checkpoint.tensors.values()})
    return {
        "method": options.method,
        "bits": options.num_bits,
        "group size": options.columns_per_scale,
        "scales": "search" if options.searches else "minmax",  # the same however it was typed
        "symmetry": options.symmetric,
        "head": options.lm_head,
        "compensation": options.compensates,
        "rotation": options.seed if options.is_rotated else None,
        "device": options.device,
        "checkpoint": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in shards],
        "calibration": digest.hexdigest() if run.samples else None,
        "version": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "compressed-tensors")},
    }


def _calibration(run: Run) -> str:
    if not run.samples:
        return ""
    num_pictures = len({sample.digest for sample in run.samples} - {None})
    num_tokens = sum(len(sample.ids) for sample in run.samples)
    return f" Calibrated with {len(run.samples)} samples, {num_pictures} pictures, {num_tokens} tokens."
