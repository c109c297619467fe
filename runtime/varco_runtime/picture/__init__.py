"""Any picture -> upright RGB -> tiles -> the plan of its image tokens."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varco_runtime.picture.loading import (
        Picture,
        Source,
        load_picture,
    )

__all__ = [
    "Picture",
    "Source",
    "load_picture",
]

_HOMES = {
    "Picture": "loading",
    "Source": "loading",
    "load_picture": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
