"""`varco serve`: a bundle behind HTTP, for programs that speak OpenAI's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from varco_cli import console
from varco_cli.arguments import (
    PROVIDERS,
    BundleArgument,
    KvCacheOption,
    OpenVinoDeviceOption,
    PrecisionOption,
    ThreadsOption,
)
from varco_runtime.errors import BrokenExtraError, MissingExtraError, first_line


def serve(
    bundle: BundleArgument,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="Port to listen on; 0 for any that is free.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keys that are let in, one per line; needed beyond loopback."),
    ] = None,
    provider: Annotated[str, typer.Option(metavar=PROVIDERS, help="As for varco run.")] = "auto",
    threads: ThreadsOption = None,
    slots: Annotated[str, typer.Option(metavar="N|auto", help="Answers at once.")] = "auto",
    max_context: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens of a prompt and its answer; the bundle's.", show_default=False),
    ] = None,
    max_queue: Annotated[int, typer.Option(metavar="N", help="Questions that may wait for a slot.")] = 64,
    queue_timeout: Annotated[float, typer.Option(metavar="S", help="Seconds that one may wait.")] = 600,
    request_timeout: Annotated[float, typer.Option(metavar="S", help="Seconds for a request in all.")] = 1800,
    drain: Annotated[
        float, typer.Option(metavar="S", help="Seconds that answers under way may go on after SIGTERM.")
    ] = 60,
    max_stall_ms: Annotated[
        float, typer.Option(metavar="MS", help="How long answers under way wait for a new question's picture.")
    ] = 50,
    model_name: Annotated[str, typer.Option(metavar="NAME", help="What requests call the model.")] = "varco",
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="A further name by which callers reach it.", show_default=False),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="An origin whose pages may ask.", show_default=False),
    ] = None,
    openvino_device: OpenVinoDeviceOption = "auto",
    precision: PrecisionOption = "auto",
    kv_cache_precision: KvCacheOption = "auto",
    log_content: Annotated[bool, typer.Option("--log-content", help="Let the log hold prompts and answers.")] = False,
) -> None:
    """Serve a bundle over HTTP, as OpenAI's API does: chat completions, and /v1/ocr, /v1/ground, /v1/refer."""
    try:
        from varco_serve.options import serve_settings
        from varco_serve.serve import serve as run
    except ImportError as error:
        raise _missing(error) from error
    settings = serve_settings(
        bundle=bundle,
        host=host,
        port=port,
        api_key_file=api_key_file,
        provider=provider,
        threads=threads,
        slots=slots,
        max_context=max_context,
        max_queue=max_queue,
        queue_timeout_s=queue_timeout,
        request_timeout_s=request_timeout,
        drain_s=drain,
        max_stall_ms=max_stall_ms,
        model_name=model_name,
        allowed_hosts=tuple(allowed_host or ()),
        cors=tuple(cors or ()),
        openvino_device=openvino_device,
        precision=precision,
        kv_cache_precision=kv_cache_precision,
        log_content=log_content,
    )
    status = run(settings, console.note)
    if status:
        raise typer.Exit(status)


def _missing(error: ImportError) -> MissingExtraError:
    if isinstance(error, ModuleNotFoundError):
        return MissingExtraError("varco serve", "serve")
    return BrokenExtraError("varco serve", "serve", error.name or "a package", first_line(error))
