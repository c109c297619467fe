"""What comes back: the answer, its JSON, COCO and hOCR forms, the painted picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varco_runtime.lazy import hand_on

if TYPE_CHECKING:
    from varco_runtime.answer.answer import Answer, Piece, Timings, Usage

__all__ = [
    "Answer",
    "Piece",
    "Timings",
    "Usage",
]

__getattr__ = hand_on(
    __name__,
    {
        "answer": (
            "Answer",
            "Piece",
            "Timings",
            "Usage",
        ),
    },
)
