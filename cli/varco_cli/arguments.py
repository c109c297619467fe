"""Arguments that several commands share, each with one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PROVIDERS = "auto|cpu|cuda|tensorrt|openvino"
"""The values of `--provider`. What runs there differs from command to command, and so does the help text."""
THREADS_HELP = "Processor threads; all unless given."

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print a JSON document.")]
ThreadsOption = Annotated[int | None, typer.Option(metavar="N", help=THREADS_HELP, show_default=False)]

OpenVinoDeviceOption = Annotated[
    str, typer.Option("--openvino-device", metavar="auto|CPU|GPU|NPU", help="OpenVINO's device; auto is the CPU.")
]
PrecisionOption = Annotated[
    str,
    typer.Option("--precision", metavar="auto|fp32", help="What OpenVINO computes in: what is fast there, or exactly."),
]
KvCacheOption = Annotated[
    str,
    typer.Option("--kv-cache-precision", metavar="auto|u8|fp16|fp32", help="OpenVINO's format of keys and values."),
]
