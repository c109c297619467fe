"""Any picture -> upright RGB -> tiles -> the plan of its image tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varco_runtime.lazy import hand_on

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

__getattr__ = hand_on(
    __name__,
    {
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
    },
)
