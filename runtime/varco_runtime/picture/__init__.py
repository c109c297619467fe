"""Any picture -> upright RGB -> tiles -> the plan of its image tokens."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varco_runtime.picture.bounds import MAX_PIXELS
    from varco_runtime.picture.loading import (
        MAX_FILE_BYTES,
        MAX_SIDE_PX,
        Picture,
        Readable,
        Source,
        load_picture,
    )
    from varco_runtime.picture.packing import PackingPlan, num_image_tokens, packing_plan

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE_PX",
    "PackingPlan",
    "Picture",
    "Readable",
    "Source",
    "load_picture",
    "num_image_tokens",
    "packing_plan",
]

_HOMES = {
    "bounds": ("MAX_PIXELS",),
    "loading": (
        "MAX_FILE_BYTES",
        "MAX_SIDE_PX",
        "Picture",
        "Readable",
        "Source",
        "load_picture",
    ),
    "packing": (
        "PackingPlan",
        "num_image_tokens",
        "packing_plan",
    ),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
