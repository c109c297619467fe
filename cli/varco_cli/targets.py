"""Where commands write to."""

from __future__ import annotations

from pathlib import Path

from varco_runtime.errors import UsageError


def check_target(option: str, path: Path) -> None:
    """Raise `UsageError` for a path that cannot become a file, before the work for it is done."""
    if path.is_dir() or not path.parent.is_dir():
        problem = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise UsageError(f"{option} {path} {problem}. Expected a file name in an existing folder.")
