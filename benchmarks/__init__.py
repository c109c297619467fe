"""Measurements; RESULTS.md holds what they gave.

`python -m benchmarks.NAME` imports this first, so that in every benchmark what a user can mend, such as a missing
file, is one line, and a traceback is a bug.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType


def explain(error: BaseException) -> str | None:
    """Return the one line that an error of a benchmark is worth; None for a bug, empty where nothing need be said."""
    if isinstance(error, KeyboardInterrupt):
        return ""
    if isinstance(error, ModuleNotFoundError):
        return f"{error}. From a checkout, install what benchmarks need with: pip install -e '.[dev]'"
    if isinstance(error, subprocess.CalledProcessError):  # it has said why
        return f"A process of its own ended with status {error.returncode}; its error is above."
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}. Check the path."
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return f"A file that should be JSON is not ({error}). Check the path."
    # By name, as without onnxruntime or outside of an installation varco_runtime cannot be imported.
    if any(kind.__name__ == "VarcoError" for kind in type(error).__mro__):
        return " ".join(str(error).split())
    return None


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    line = explain(error)
    if line is None:
        sys.__excepthook__(kind, error, trace)
    elif line:
        print(f"benchmarks.{Path(sys.argv[0]).stem}: {line}", file=sys.stderr)


if sys.argv[:1] == ["-m"]:  # what it is while python -m looks for a module of this package
    sys.excepthook = _show
