"""Arguments that several commands share, each with one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print a JSON document.")]
