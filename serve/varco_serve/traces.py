"""Where an error was raised, for the log, and not what it says: that may be a caller's text, or a path of ours."""

from __future__ import annotations

import traceback
from pathlib import Path


def places_of(error: BaseException, most: int) -> list[str]:
    """Return the innermost places of an error's way, each as `file.py:12 function`, the innermost last.

    Args:
        error: What was raised.
        most: How many at most.
    """
    places = [f"{Path(at.filename).name}:{at.lineno} {at.name}" for at in traceback.extract_tb(error.__traceback__)]
    return places[-most:]
