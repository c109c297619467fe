"""What comes back: the answer, its JSON, COCO and hOCR forms, the painted picture."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varco_runtime.answer.answer import Answer, Piece, Timings, Usage

__all__ = [
    "Answer",
    "Piece",
    "Timings",
    "Usage",
]

_HOMES = {
    "answer": (
        "Answer",
        "Piece",
        "Timings",
        "Usage",
    ),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
