"""One linear: its Hessian, its quantized weight by llm-compressor, and the tensors that stand for it on disk.

Scales are taken from the weight in the dtype it is stored in, as llm-compressor does, and GPTQ runs with the very
scales that are saved. `Quantized.weight` is what a reader of the checkpoint computes from the saved tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from varco_export.quantize.scheme import silence

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

DAMPENING = 0.01  # of the Hessian's mean diagonal; llm-compressor's default
BLOCK_COLUMNS = 128  # columns whose error is passed on together; llm-compressor's default


class Hessian:
    """2 X^T X of what flowed into a linear, averaged over samples: `[K, K]` in fp32."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        silence()
        from llmcompressor.modifiers.gptq.helpers import make_empty_hessian

        self._sum: torch.Tensor = make_empty_hessian(linear)
        self._num_samples = torch.zeros((), device=self._sum.device)

    def add(self, inputs: torch.Tensor, linear: torch.nn.Linear) -> None:
        """Count in one sample's inputs [1, S, K]."""
        from llmcompressor.modifiers.gptq.helpers import accumulate_hessian

        self._sum, self._num_samples = accumulate_hessian(inputs, linear, self._sum, self._num_samples)

    def mean(self) -> torch.Tensor:
        """Return the matrix, for the caller to spoil."""
        return self._sum / self._num_samples


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A quantized linear. `tensors` are saved, by last name. `is_nearest`: its Hessian could not be inverted."""

    weight: torch.Tensor
    tensors: dict[str, torch.Tensor]
    is_nearest: bool = False


def quantize_linear(
    weight: torch.Tensor, dtype: torch.dtype, scheme: QuantizationScheme, format_: str, hessian: torch.Tensor | None
) -> Quantized:
    """Quantize a weight by GPTQ, or without a Hessian by rounding to the nearest.

    Args:
        weight: `[N, K]` in fp32, whose values are `dtype`'s.
        dtype: The type that it is stored in, and that its scales are saved in.
        scheme: What quantizes it, in the words of compressed-tensors.
        format_: compressed-tensors' name of the layout.
        hessian: `[K, K]` of what flows into the linear, spoiled here; None for rounding to the nearest.
    """
    scale, zero_point = _scale_of(weight.to(dtype), scheme)
    scale = scale.to(dtype).float()
    is_nearest = False
    if hessian is not None:
        from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

        moved, _, fell_back = quantize_weight(
            weights=weight.clone()[None],
            hessians=hessian[None],
            scale=scale[None],
            zero_point=zero_point[None],
            global_scale=None,
            quant_args=scheme.weights,
            blocksize=BLOCK_COLUMNS,
            percdamp=DAMPENING,
        )
        weight, is_nearest = moved[0], bool(fell_back[0])
    return _packed(weight, scale, dtype, scheme, format_, is_nearest)


def output_error(weight: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> float:
    """Return the squared error of the linear's outputs over the outputs' own square, on the Hessian's samples."""

    def energy(matrix: torch.Tensor) -> float:
        return float(((matrix @ hessian) * matrix).sum())

    return energy(weight - quantized) / max(energy(weight), 1e-30)


def _scale_of(weight: torch.Tensor, scheme: QuantizationScheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scales and zero points `[N, groups]` by llm-compressor's observer."""
    silence()
    from llmcompressor.observers import Observer

    arguments = scheme.weights
    assert arguments is not None, "Bug: a scheme without weights"
    observer = Observer.load_from_registry(
        arguments.observer or "memoryless_minmax", base_name="weight", args=arguments
    )
    observer(weight)
    found = observer.get_qparams()
    return found["scale"], found["zero_point"]


def _packed(
    weight: torch.Tensor,
    scale: torch.Tensor,
    dtype: torch.dtype,
    scheme: QuantizationScheme,
    format_: str,
    is_nearest: bool,
) -> Quantized:
    from compressed_tensors.compressors import BaseCompressor

    compressor = BaseCompressor.get_value_from_registry(format_)
    tensors = compressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    saved = compressor.decompress(tensors, scheme)["weight"]
    tensors["weight_scale"] = tensors["weight_scale"].to(dtype)
    return Quantized(saved.float(), {name: tensor.cpu() for name, tensor in tensors.items()}, is_nearest)
