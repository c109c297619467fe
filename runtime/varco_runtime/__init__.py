"""varco-edge runtime: answers about images from a bundle, without torch or transformers.

`from varco_runtime import Varco` is all most programs need. Names are imported when they are first used, so that
importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as typing has it, which takes longer to import than all else that starts the command `varco`
if TYPE_CHECKING:
    from typing import Any

    from varco_runtime.answer.answer import Answer, Piece
    from varco_runtime.chat import Chat
    from varco_runtime.errors import VarcoError
    from varco_runtime.markup.parser import parse
    from varco_runtime.markup.regions import Box, Region
    from varco_runtime.markup.writer import render
    from varco_runtime.stream import Stream
    from varco_runtime.varco import Varco
    from varco_runtime.video.video import Video

__version__ = "0.1.0"

__all__ = ["Answer", "Box", "Chat", "Piece", "Region", "Stream", "Varco", "VarcoError", "Video", "parse", "render"]

_HOMES = {
    "Answer": "answer.answer",
    "Box": "markup.regions",
    "Chat": "chat",
    "Piece": "answer.answer",
    "Region": "markup.regions",
    "Stream": "stream",
    "Varco": "varco",
    "VarcoError": "errors",
    "Video": "video.video",
    "parse": "markup.parser",
    "render": "markup.writer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The names above too, though none is imported yet: what tab completion offers."""
    return sorted({*globals(), *__all__})
