"""One run of a quantization, with everything that all its stages need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from varco_export.checkpoint.checkpoint import Checkpoint
from varco_export.config.prompts import PromptAssets
from varco_export.progress import QuantizeProgress
from varco_export.quantize.calibration import EncodedSample
from varco_export.quantize.options import QuantizeOptions

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

_HELD_OUT_OF = 16
_MAX_HELD = 8


@dataclass(slots=True)
class Run:
    """One run.

    Args:
        checkpoint: The original, turned as it is read if it is rotated.
        prompts: Its tokenizer, template and settings.
        options: What is asked for.
        scheme: How layers are quantized; None where nothing is.
        head_scheme: How the head is; None for a plain one.
        samples: What Hessians are measured with.
        held: What the result is measured with, none of them in `samples`.
        progress: Who is told how far it is.
        device: Where to compute.
    """

    checkpoint: Checkpoint
    prompts: PromptAssets
    options: QuantizeOptions
    scheme: QuantizationScheme | None
    head_scheme: QuantizationScheme | None
    samples: list[EncodedSample]
    held: list[EncodedSample]
    progress: QuantizeProgress
    device: torch.device

    @property
    def num_layers(self) -> int:
        """Return the number of decoder layers."""
        return self.checkpoint.config.text.num_hidden_layers

    @property
    def lengths(self) -> list[int]:
        """Return the tokens of what runs through the quantized layers: all samples, then those held out."""
        return [len(sample.ids) for sample in (*self.samples, *self.held)]

    @property
    def original_samples(self) -> list[EncodedSample]:
        """Return what runs through the layers as they were: everything, or only what is held out."""
        return [*self.samples, *self.held] if self.options.compensates else self.held

    @property
    def original_lengths(self) -> list[int]:
        """Return the tokens of `original_samples`."""
        return [len(sample.ids) for sample in self.original_samples]

    def token_weights(self) -> list[NDArray[np.float32]]:
        """Return what each token of each sample counts for in a Hessian, `[S]`.

        All tokens of pictures together count for no more than all of texts: there are many times as many, and what is
        answered hangs on the texts' more.
        """
        image_token_id = self.prompts.prompt.image_token_id
        is_text = [np.array(sample.ids) != image_token_id for sample in self.samples]
        num_text, total = sum(int(one.sum()) for one in is_text), sum(map(len, is_text))
        share = min(1.0, num_text / max(total - num_text, 1))
        return [np.where(one, 1, share).astype(np.float32) for one in is_text]


def hold_out(samples: Sequence[EncodedSample]) -> tuple[list[EncodedSample], list[EncodedSample]]:
    """Return samples to measure Hessians with, and one of sixteen to measure the result with, at most 8.

    All samples about a picture are on one side, so a picture that is held out gives several.
    """
    num_held = min(_MAX_HELD, len(samples) // _HELD_OUT_OF)
    held: list[int] = []
    for step in range(num_held):
        index = (2 * step + 1) * len(samples) // (2 * num_held)
        digest = samples[index].digest
        if len(held) < num_held and index not in held:
            held += [index] if digest is None else [n for n, other in enumerate(samples) if other.digest == digest]
    kept = [sample for index, sample in enumerate(samples) if index not in held]
    return (kept, [samples[index] for index in held[:num_held]]) if kept and held else (list(samples), [])
