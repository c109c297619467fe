"""`varco bench`: how fast a bundle is on this machine, beside the machine's limit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from varco_cli.arguments import (
    PROVIDERS,
    JsonOption,
    KvCacheOption,
    OpenVinoDeviceOption,
    PrecisionOption,
    ThreadsOption,
)
from varco_cli.commands.demo import BUNDLE, draw_sign
from varco_cli.console import note, print_facts, print_table, size_text, write, write_document
from varco_cli.progress import HashProgress
from varco_cli.targets import check_target
from varco_runtime.errors import UsageError, VarcoError
from varco_runtime.system.files import whole_file

if TYPE_CHECKING:
    from varco_runtime.bench.run import Options, Result
    from varco_runtime.picture.loading import Picture

MIN_NEW_TOKENS = 4
"""Fewer leave no time between two steps to speak of."""
MIN_SECONDS = 1
DRAWN = "the sign that varco demo draws"


def bench(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="BUNDLE", help="The bundle's folder; the demo's unless given.", show_default=False),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Argument(metavar="IMAGE", help="A picture file; a drawn sign unless given.", show_default=False),
    ] = None,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The question, in quotes.", show_default=False)
    ] = None,
    images: Annotated[int, typer.Option(metavar="N", help="Ask about so many copies of the picture.")] = 1,
    frames: Annotated[int, typer.Option(metavar="F", help="Ask about a video of so many of them instead.")] = 0,
    repetitions: Annotated[int, typer.Option(metavar="N", help="How often each stage is run.")] = 5,
    new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens to decode; no end token stops it.")] = 64,
    seconds: Annotated[
        float, typer.Option(metavar="S", help="About how long to measure; what does not fit is cut, and named.")
    ] = 60,
    provider: Annotated[str, typer.Option(metavar=PROVIDERS, help="What to run on.")] = "auto",
    threads: ThreadsOption = None,
    max_context: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens to make room for.", show_default=False)
    ] = None,
    openvino_device: OpenVinoDeviceOption = "auto",
    precision: PrecisionOption = "auto",
    kv_cache_precision: KvCacheOption = "auto",
    slots: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto", help="Measure 1, 2, 4, ... N answers at once instead of the stages.", show_default=False
        ),
    ] = None,
    long_side: Annotated[
        int | None,
        typer.Option(metavar="PX", help="As for varco run; matters for the prompt <ocr>.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the JSON document to a file.", show_default=False)
    ] = None,
) -> None:
    """Measure every stage of an answer beside the machine's limit, and say what dominates."""
    _check(repetitions, new_tokens, seconds, out)
    _check_media(images, frames)
    if bundle is None and not BUNDLE.is_dir():
        raise VarcoError("This installation carries no demo bundle. Name one: varco bench BUNDLE")

    from varco_runtime.backends.openvino.settings import OpenVinoSettings
    from varco_runtime.bench.run import Options, run
    from varco_runtime.bench.workload import PROMPT
    from varco_runtime.bundle.opening import read_manifest

    options = Options(
        bundle=bundle or BUNDLE,
        picture=_picture(image),
        picture_name=DRAWN if image is None else image.name,
        prompt=PROMPT if prompt is None else prompt,
        repetitions=repetitions,
        new_tokens=new_tokens,
        seconds=seconds,
        provider=provider,
        threads=threads,
        max_context=max_context,
        openvino=OpenVinoSettings(openvino_device, precision, kv_cache_precision),
        images=images,
        frames=frames,
        long_side=long_side,
    )
    if slots is not None:
        _measure_at_once(options, int(slots) if slots.isdecimal() else slots, as_json, out)
        return
    sizes = {name: facts.size for name, facts in read_manifest(options.bundle).files.items()}
    with HashProgress(sizes) as hashing:
        result = run(options, _progress, hashing)
    document = json.dumps(result.to_dict() | _machine(), indent=2, ensure_ascii=False)
    if out is not None:
        _write(out, document)
    if as_json:
        write_document(document)
    else:
        _print(options, result)


def _measure_at_once(options: Options, slots: int | str, as_json: bool, out: Path | None) -> None:
    """Measure several answers at once, and print or write what was found."""
    from varco_runtime.bench.at_once import measure_at_once

    report = measure_at_once(options, slots, _progress)
    document = json.dumps(report.to_dict() | _machine(), indent=2, ensure_ascii=False)
    if out is not None:
        _write(out, document)
    if as_json:
        write_document(document)
        return
    header = ("answers at once", "tokens/s", "limit", "answers/s", "first token", "p99", "gap", "gap p99")
    rows = [
        (
            str(row.answers),
            f"{row.tokens_per_s:,.1f}",
            "unknown" if row.limit_tokens_per_s is None else f"{row.limit_tokens_per_s:,.1f}",
            f"{row.answers_per_s:,.2f}",
            *(f"{1000 * s:,.1f} ms" for s in (row.ttft_p50_s, row.ttft_p99_s, row.gap_p50_s, row.gap_p99_s)),
        )
        for row in report.rows
    ]
    title = f"{options.bundle.resolve().name} on {report.device}: {report.new_tokens} tokens each, one picture"
    print_table(title, header, rows, right=tuple(range(8)))
    note(f"Loaded in {report.load_s:.1f} s. {report.graphs_line}".rstrip())
    if report.slots_line:
        note(report.slots_line)


def _check(repetitions: int, new_tokens: int, seconds: float, out: Path | None) -> None:
    if repetitions < 1:
        raise UsageError(f"--repetitions {repetitions} is too few. Expected at least 1.")
    if new_tokens < MIN_NEW_TOKENS:
        raise UsageError(f"--new-tokens {new_tokens} is too few. Expected at least {MIN_NEW_TOKENS}.")
    if not (math.isfinite(seconds) and seconds >= MIN_SECONDS):
        raise UsageError(f"--seconds {seconds:g} cannot be kept. Expected at least {MIN_SECONDS}.")
    if out is not None:
        check_target("--out", out)


def _check_media(images: int, frames: int) -> None:
    if images < 1:
        raise UsageError(f"--images {images} is too few. Expected at least 1.")
    if frames < 0:
        raise UsageError(f"--frames {frames} is too few. Expected at least 1, or 0 for no video.")
    from varco_runtime.video.video import MAX_FRAMES

    for name, number in (("--images", images), ("--frames", frames)):
        if number > MAX_FRAMES:
            raise UsageError(f"{name} {number} is too many. Expected at most {MAX_FRAMES:,}.")
    if frames and images > 1:
        raise UsageError("--images and --frames ask about pictures and about a video. Leave one out.")


def _picture(image: Path | None) -> Picture:
    from varco_runtime.picture.loading import load_picture

    return load_picture(draw_sign()[0] if image is None else image)


def _progress(text: str) -> None:
    note(text, faint=True)


def _machine() -> dict[str, Any]:
    """Return the machine and the versions as `varco doctor` finds them."""
    from varco_cli.commands.doctor import examine

    report = examine()
    return {
        "versions": {name: version for name, version in report.versions.items() if version is not None},
        "machine": {
            "platform": report.platform,
            "cpu": report.cpu,
            "num_cores": report.num_cores,
            "memory_bytes": report.memory_total_bytes,
            "gpus": report.gpus,
        },
    }


def _write(path: Path, document: str) -> None:
    try:
        with whole_file(path) as file:
            file.write(document.encode() + b"\n")
    except OSError as error:
        raise VarcoError(f"{path} could not be written: {error.strerror}. Choose another place for --out.") from None


def _print(options: Options, result: Result) -> None:
    from varco_runtime.bench.report import facts, rows

    shown = options.picture_name
    if options.frames or options.images > 1:
        shown = f"{options.frames} frames of {shown}" if options.frames else f"{options.images} times {shown}"
    question = f"{shown}, {options.prompt!r}"
    title = f"{result.setup.bundle}, {size_text(result.setup.bundle_bytes)}: {question}"
    header = ("", "median", "std", "least", "p90", "greatest")
    print_table(title, header, rows(result.samples, result.summary), right=(1, 2, 3, 4, 5))
    print_facts("\nQuestion, machine, limits", facts(result.setup, result.samples, result.summary, result.limit))
    write(f"\n{result.summary.dominant.line}\n")
    for line in result.samples.notes:
        note(f"note: {line}")
