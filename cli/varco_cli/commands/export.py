"""`varco export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from varco_cli.commands.inspect import license_text
from varco_cli.console import note, print_facts, size_text
from varco_cli.progress import ExportProgress
from varco_runtime.errors import CheckpointError
from varco_runtime.system.libraries import needs_extra

if TYPE_CHECKING:
    from varco_runtime.bundle.manifest import Component, Manifest

# KL of int4 in blocks: to the nearest, and as varco quantize makes it without a folder (benchmarks/RESULTS.md).
_REPORT = "quantization.json"
"""What `varco quantize` writes beside the weights; its own module needs torch."""
_KL = {32: (0.61, 0.16), 128: (0.70, 0.19)}


def export(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A folder of safetensors, or a Hugging Face repository id.")
    ],
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder to make.")],
    device: Annotated[str, typer.Option(metavar="cpu|cuda|tensorrt", help="Where the bundle will run.")] = "cpu",
    decoder: Annotated[
        str,
        typer.Option(
            metavar="auto|fp32|fp16|bf16|int8|int4|fp8",
            help="Weights of the language model; auto keeps a quantised checkpoint's format, else fp32, the exact one, "
            "or for cuda and tensorrt fp16 or bf16 as stored. int8 and int4 of a plain checkpoint are rounded to the "
            "nearest; varco quantize loses less.",
        ),
    ] = "auto",
    vision: Annotated[
        str,
        typer.Option(
            metavar="auto|fp32|fp16|bf16|int8",
            help="Weights of the vision tower and projector; auto is fp32, for a GPU what the decoder computes in; "
            "int8 (weights and activations) is the fast one on a CPU.",
        ),
    ] = "auto",
    lm_head: Annotated[
        str,
        typer.Option(
            metavar="auto|fp32|fp16|bf16|int8|int4|fp8",
            help="Weights of the last layer; auto is int8 beside int8 or int4, a float for a GPU.",
        ),
    ] = "auto",
    block_size: Annotated[
        int, typer.Option(metavar="32|64|128", help="Weights that share a scale in int8 and int4.")
    ] = 32,
    activations: Annotated[
        str, typer.Option(metavar="float|int8", help="Inputs of int8 and int4 layers: float is exact, int8 is fast.")
    ] = "float",
    embedding: Annotated[
        str,
        typer.Option(
            metavar="auto|device|host|shared",
            help="Where the token rows lie; auto is the GPU's memory for cuda and tensorrt. With cuda, host keeps them "
            "out of it and moves one row per token, for small cards. With cpu, shared reads them from an int8 output "
            "head that is tied to them, as auto does for Qwen3.",
        ),
    ] = "auto",
    kv_cache: Annotated[
        str,
        typer.Option(
            metavar="auto|fp32|fp16",
            help="Keys and values that a CPU keeps; auto is what the decoder computes in. fp16 takes half the memory, "
            "and time where the processor converts it.",
        ),
    ] = "auto",
    max_context: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens of prompt, picture and answer; 10240 holds the largest picture.",
            show_default=False,
        ),
    ] = None,
    vision_from: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="The original of a language model that was quantised apart; gives the vision side.",
            show_default=False,
        ),
    ] = None,
    max_grid_tiles: Annotated[
        int | None,
        typer.Option(
            metavar="4|9|16",
            help="A preset for how many tiles' worth of image tokens a large picture gets; the checkpoint's own unless "
            "given.",
            show_default=False,
        ),
    ] = None,
    ocr_long_side: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            help="Scale smaller pictures up to this long side before reading their text, 0 for not at all; unless "
            "given 2304 for VARCO-VISION 2.0, else 0.",
            show_default=False,
        ),
    ] = None,
    probes: Annotated[
        bool | None,
        typer.Option(
            "--probes/--no-probes",
            help="Put in questions with the exact model's answers, for varco verify --numerics; automatic below a "
            "billion parameters.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
) -> None:
    """Turn a checkpoint into a bundle of ONNX graphs. Needs the extra 'export', but no torch."""
    with needs_extra("Exporting", "export"):
        from varco_export.export import ExportOptions
        from varco_export.export import export as export_bundle
    options = ExportOptions(
        device,
        decoder,
        vision,
        lm_head,
        block_size,
        activations,
        max_context,
        overwrite,
        vision_from,
        probes,
        embedding,
        max_grid_tiles,
        ocr_long_side,
        kv_cache,
    )
    with ExportProgress() as progress:
        manifest = export_bundle(checkpoint, bundle, options, progress)
    _report(bundle, manifest)
    rounded = re.match(r"int4 \(blocks of (\d+)", manifest.decoder.precision)
    if rounded:
        has_head = ", head " not in manifest.decoder.precision
        note(_loss(checkpoint, int(rounded[1]), has_head, _is_rotated(Path(checkpoint))))


def _is_rotated(folder: Path) -> bool:
    """Return whether `varco quantize --method none` made a checkpoint: rotated, and not rounded."""
    from varco_export.reading.json_file import read_json

    try:
        return read_json(folder / _REPORT, required=False).get("method") == "none"
    except CheckpointError:  # whatever else is called so
        return False


def _loss(checkpoint: str, block_size: int, has_head: bool, is_rotated: bool) -> str:
    """Return what int4 rounded without calibration loses, and the command that gains it.

    Args:
        checkpoint: What was exported.
        block_size: Weights that share a scale.
        has_head: Whether the head is int4 too.
        is_rotated: Whether the checkpoint is turned: rounded so, without calibration, it loses more than the original.
    """
    head = " --lm-head int4" if has_head else ""
    if is_rotated:
        return (
            "int4 was rounded without calibration, and loses more in a rotated checkpoint than in the one that it was "
            f"made from. Quantise that one: varco quantize ORIGINAL OUT --method gptq --group-size {block_size}{head}"
        )
    measured = 32 if block_size == 32 else 128
    lost, kept = _KL[measured]
    made = shlex.quote(Path(checkpoint).name + "-int4")
    command = f"varco quantize {shlex.quote(checkpoint)} {made} --method gptq --group-size {block_size}{head}"
    return (
        f"int4 was rounded without calibration, which cost a model of 135 million parameters {lost:.2f} nats per token "
        f"in blocks of {measured}. With calibration it costs {kept:.2f}, at the same size and speed: {command}"
    )


def _report(bundle: Path, manifest: Manifest) -> None:
    total_bytes = sum(facts.size for facts in manifest.files.values())
    cache_bytes = manifest.kv_bytes_per_token * manifest.max_context
    print_facts(
        f"{bundle} is ready: {size_text(total_bytes)}",
        [
            ("vision", _component(manifest, manifest.vision)),
            ("projector", _component(manifest, manifest.projector)),
            ("embedding", _embedding(manifest)),
            ("decoder", _component(manifest, manifest.decoder)),
            ("read per token", f"{size_text(manifest.decoder.weight_bytes)} of weights"),
            ("context", f"{manifest.max_context:,} tokens, {size_text(cache_bytes)} of cache when full"),
            ("probes", "none" if manifest.probes is None else size_text(manifest.files[manifest.probes].size)),
            ("licence of the weights", license_text(manifest.license)),
        ],
    )
    for text in manifest.provenance.get("notes", []):
        note(f"note: {text}")
    path = shlex.quote(str(bundle))
    if manifest.device == "tensorrt":
        note(f"Next, on the device or for it (--sm): varco engines {path}")
    else:
        note(f'Next: varco run {path} PICTURE "Describe this image."')


def _embedding(manifest: Manifest) -> str:
    if manifest.embedding is None:
        return "in the GPU's memory, in the graphs"
    if manifest.embedding.head_rows is not None:
        return "int8, the decoder's output head"
    return f"{manifest.embedding.dtype}, {size_text(manifest.files[manifest.embedding.file].size)}"


def _component(manifest: Manifest, component: Component) -> str:
    num_bytes = sum(manifest.files[name].size for name in (component.file, component.data))
    return f"{component.precision}, {size_text(num_bytes)}"
