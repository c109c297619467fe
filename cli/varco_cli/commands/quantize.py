"""`varco quantize`: a checkpoint becomes a GPTQ or FP8 checkpoint."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from varco_cli.console import note, print_facts, shows_bars, size_text
from varco_runtime.system.libraries import needs_extra

if TYPE_CHECKING:
    from varco_export.quantize.options import QuantizeOptions


class _Progress:
    """Bars on a terminal; elsewhere a line per tenth of a stage, with the time that the rest will take."""

    @contextmanager
    def stage(self, name: str, steps: int, done: int = 0) -> Iterator[Callable[[], None]]:
        if shows_bars():
            from rich.console import Console
            from rich.progress import Progress

            with Progress(*Progress.get_default_columns(), console=Console(stderr=True)) as bars:
                task = bars.add_task(name, total=steps, completed=done)
                yield lambda: bars.advance(task)
            return
        started, first = time.monotonic(), done

        def advance() -> None:
            nonlocal done
            done += 1
            if done == steps or done * 10 // steps > (done - 1) * 10 // steps:
                spent_s = time.monotonic() - started
                left_s = spent_s / (done - first) * (steps - done)
                note(f"{name}: {done} of {steps} after {spent_s:.0f} s" + (f", {left_s:.0f} s to go" if left_s else ""))

        yield advance

    def note(self, text: str) -> None:
        note(text)


def quantize(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A folder of safetensors, or a Hugging Face repository id.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The checkpoint to make.")],
    method: Annotated[
        str,
        typer.Option(
            metavar="gptq|fp8|none",
            help="int4 or int8 weights by GPTQ; FP8 weights and activations; or rotated and not rounded.",
        ),
    ],
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Pictures to measure the model with, and optionally calibration.jsonl: image, prompt and answer. "
            "Without it, pictures and texts that the project makes.",
            show_default=False,
        ),
    ] = None,
    rotate: Annotated[
        bool | None,
        typer.Option(
            "--rotate/--no-rotate",
            help="Turn the residual stream first, which spreads outliers over all channels; by default for gptq and "
            "none. It unties a tied head.",
            show_default=False,
        ),
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(
            metavar="search|minmax",
            help="GPTQ's scales: those of least error, weighted with what the model sees, or those that reach to the "
            "largest weight; search by default.",
            show_default=False,
        ),
    ] = None,
    symmetric: Annotated[
        bool, typer.Option("--symmetric/--asymmetric", help="Without or with zero points, which CUDA's kernels lack.")
    ] = True,
    bits: Annotated[
        int | None, typer.Option(metavar="4|8", help="Bits of a GPTQ weight; 4 by default.", show_default=False)
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(metavar="32|64|128", help="GPTQ weights that share a scale; 128 by default.", show_default=False),
    ] = None,
    lm_head: Annotated[
        str, typer.Option(metavar="plain|int4|int8", help="The output head: as it is, or by GPTQ like any linear.")
    ] = "plain",
    samples: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Calibration samples to use at most; 256 by default. With fp8, 0 rounds to the nearest, without a run "
            "of the model.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="What the rotation is made of.")] = 0,
    compensate: Annotated[
        bool | None,
        typer.Option(
            "--compensate/--no-compensate",
            help="Round each linear towards what it gave in the original, so that it makes up for the errors before "
            "it; by default for gptq. It takes more time, and three times the disk while it runs.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where to compute.")] = "cpu",
) -> None:
    """Make a GPTQ or FP8 checkpoint, or a rotated one. Run the same command again to continue after an interruption.

    Needs the extra 'quantize'.
    """
    with needs_extra("Quantising", "quantize"):
        from varco_export.quantize import QuantizeOptions as Options
        from varco_export.quantize import quantize as quantize_checkpoint
    options = Options(
        method, calibration, bits, group_size, samples, device, rotate, scales, symmetric, lm_head, seed, compensate
    )
    made = quantize_checkpoint(checkpoint, out, options, _Progress())
    plain = method == "none"
    print_facts(
        f"{made.folder} is ready: {size_text(made.num_bytes)}, from {size_text(made.source_bytes)}",
        [
            ("format", "plain" if plain else f"compressed-tensors {options.format}, language model only"),
            ("weights", "rotated, not rounded" if plain else f"{options.num_bits} bits, {_scales(options)}"),
            ("head", "plain" if lm_head == "plain" else f"{lm_head}, by GPTQ"),
            ("rotation", f"seed {seed}" if options.is_rotated else "none"),
            ("calibration", _calibration(method, made.num_samples, made.num_tokens)),
            *_kept(made.report),
            ("read by", "varco export; transformers with compressed-tensors (tested); vLLM (untested)"),
        ],
    )
    note(f"Next: varco export {shlex.quote(str(out))} BUNDLE")


def _kept(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what rounding cost, as far as it was measured."""
    errors = report.get("output_error")
    if errors:
        parts = [f"{name.rpartition('.')[2].removesuffix('_proj')} {error:.2g}" for name, error in errors.items()]
        yield "output error", f"{', '.join(parts)} of the outputs' square"
    if "kl_nats_per_token" in report:
        samples, tokens = report["kl_samples"], report["kl_tokens"]
        yield "KL", f"{report['kl_nats_per_token']:.4f} nats per token, {tokens:,} tokens of {samples} held-out samples"
    elif errors:
        yield "KL", "not measured: fewer than 16 samples, so none were held out"


def _scales(options: QuantizeOptions) -> str:
    columns = options.columns_per_scale
    if columns is None:
        return "a scale per row"
    return f"a scale per {columns} weights" + ("" if options.symmetric else " and a zero point")


def _calibration(method: str, num_samples: int, num_tokens: int) -> str:
    if not num_samples:
        return "none: rounded to the nearest; without --samples 0 it loses less" if method == "fp8" else "none needed"
    plural = "" if num_samples == 1 else "s"
    return f"{num_samples} sample{plural}, {num_tokens:,} tokens"
