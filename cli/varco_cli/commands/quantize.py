"""`varco quantize`: a checkpoint becomes a GPTQ or FP8 checkpoint."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from varco_cli.console import note, print_facts, shows_bars, size_text
from varco_runtime.system.libraries import needs_extra


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
        str, typer.Option(metavar="gptq|fp8", help="int4 or int8 weights by GPTQ, or FP8 weights and activations.")
    ],
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Pictures to calibrate GPTQ with, and optionally calibration.jsonl: image, prompt and answer.",
            show_default=False,
        ),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(metavar="4|8", help="Bits of a GPTQ weight; 4 by default.", show_default=False)
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(metavar="32|64|128", help="GPTQ weights that share a scale; 128 by default.", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", help="Calibration samples to use at most.")] = 256,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where to compute.")] = "cpu",
) -> None:
    """Make a GPTQ or FP8 checkpoint. Run the same command again to continue after an interruption.

    Needs the extra 'quantize'.
    """
    with needs_extra("Quantising", "quantize"):
        from varco_export.quantize import QuantizeOptions
        from varco_export.quantize import quantize as quantize_checkpoint
    options = QuantizeOptions(method, calibration, bits, group_size, samples, device)
    made = quantize_checkpoint(checkpoint, out, options, _Progress())
    print_facts(
        f"{made.folder} is ready: {size_text(made.num_bytes)}, from {size_text(made.source_bytes)}",
        [
            ("format", f"compressed-tensors {options.format}, language model only"),
            ("weights", f"{options.num_bits} bits, {_scales(options.columns_per_scale)}"),
            ("calibration", _calibration(made.num_samples, made.num_tokens)),
            ("read by", "varco export; transformers with compressed-tensors (tested); vLLM (untested)"),
        ],
    )
    note(f"Next: varco export {shlex.quote(str(out))} BUNDLE")


def _scales(columns: int | None) -> str:
    return "a scale per row" if columns is None else f"a scale per {columns} weights"


def _calibration(num_samples: int, num_tokens: int) -> str:
    plural = "" if num_samples == 1 else "s"
    return f"{num_samples} sample{plural}, {num_tokens:,} tokens" if num_samples else "none needed"
