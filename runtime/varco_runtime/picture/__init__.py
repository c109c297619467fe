"""Any picture -> upright RGB -> tiles -> the plan of its image tokens."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varco_runtime.picture.loading import Picture, Source, load_picture
    from varco_runtime.picture.packing import PackingPlan, num_image_tokens, packing_plan

__all__ = [
    "PackingPlan",
    "Picture",
    "Source",
    "load_picture",
    "num_image_tokens",
    "packing_plan",
]

_HOMES = {
    "loading": (
        "Picture",
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
