"""What `make demo` runs: a checkpoint becomes a bundle, the bundle looks at a sign, the answer is painted on it.

    python -m tools.demo OUT

The checkpoint is `models/varco-tiny` where the checkout holds it, and else one of random weights, made here, whose
answers are nonsense. Everything lands in OUT; running it again starts afresh.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from varco_cli import console
from varco_cli.commands.demo import demonstrate
from varco_cli.progress import ExportProgress
from varco_export.export import ExportOptions, export
from varco_export.tiny import TinyOptions, make_tiny
from varco_runtime.errors import VarcoError

TRAINED = Path(__file__).resolve().parents[1] / "models" / "varco-tiny"


def main(arguments: list[str]) -> int:
    """Run the demonstration and return the exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        console.error("the demo takes one folder to write into. Expected: python -m tools.demo OUT")
        return 2
    try:
        run(Path(arguments[0]))
    except (VarcoError, OSError) as error:
        console.error(str(error))
        return 1
    return 0


def run(out: Path, trained: Path = TRAINED) -> None:
    """Make or find the checkpoint, export it into `out`, and show what it can do."""
    can_read = all((trained / name).is_file() for name in ("config.json", "model.safetensors"))
    started = time.perf_counter()
    if can_read:
        checkpoint = trained
    else:
        shutil.rmtree(out / "checkpoint", ignore_errors=True)
        checkpoint = make_tiny(out / "checkpoint", TinyOptions())
    with ExportProgress() as progress:
        export(checkpoint, out / "bundle", ExportOptions(overwrite=True), progress)
    console.write(f"{checkpoint} exported to {out / 'bundle'} in {time.perf_counter() - started:.1f} s.\n")
    demonstrate(out / "bundle", out, can_read)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
