"""Prompts of random tokens, random pictures, and numbers that agree as far as two orders of summation do."""

from __future__ import annotations

import numpy as np
from PIL import Image

from varco_runtime import Varco
from varco_runtime.backend import PromptInputs


def text_inputs(varco: Varco, length: int, seed: int = 0) -> PromptInputs:
    ids = np.random.default_rng(seed).integers(0, 250, length)
    return PromptInputs(ids.astype(np.int64), varco.bundle.manifest.prompt.image_token_id, None)


def noise_picture(seed: int = 0) -> Image.Image:
    """A picture of 130 by 90 random pixels, which the tiny models see as several tiles."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (90, 130, 3), dtype=np.uint8))


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= 2e-5 * np.abs(b).max())
