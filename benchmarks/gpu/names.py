"""Steps and settings of `gpu_check`; imports nothing, so that options are parsed before any package is needed."""

from __future__ import annotations

DECIDING = ("environment", "tokens", "tests", "products")
"""Where one fails, what comes after it would measure wrong numbers."""
DEFAULT_STEPS = (*DECIDING, "int4", "rows", "pairs", "precisions", "transformers", "small")
STEPS = (*DEFAULT_STEPS, "operators")
MAX_CONTEXT = {"14b": 10_240, "tiny": 256}
BUDGET_S = 480.0
LIMIT_S = {
    "environment": 60,
    "tokens": 90,
    "tests": 180,
    "products": 90,
    "int4": 150,
    "rows": 120,
    "pairs": 150,
    "precisions": 150,
    "transformers": 150,
    "small": 90,
    "operators": 120,
}
"""A step that takes longer counts as stuck. What it has told by then is kept. A larger budget stretches all of them."""
SHAPES = {"14b": ("14b", "0.5b"), "tiny": ("tiny", "tiny-small")}
"""The large and the small model."""
MEASURED = ("int4", "fp8", "bf16")
"""Formats of the decoder in which the large model is measured."""
