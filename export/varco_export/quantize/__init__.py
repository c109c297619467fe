"""`varco quantize`: a checkpoint becomes a GPTQ or FP8 checkpoint in the compressed-tensors format, or a rotated one.

    (rotated) -> calibration -> inputs_embeds -> [layer: measure -> quantize -> save -> run on] x N -> head -> OUT

The format is compressed-tensors'; the loop holds one decoder layer at a time, calibrates with pictures through the
project's own preprocessing, and survives a kill:

    options.py       what is asked for                      run.py           one run, and what it holds out
    hadamard.py      orthogonal matrices in factors         rotated.py       a checkpoint turned as it is read
    calibration.py   FOLDER -> samples -> token ids         drawn.py         the same without a folder; texts.py
    pictures.py      pictures -> image tokens               embeddings.py    samples -> inputs_embeds
    activations.py   every sample's hidden states, on disk  layer.py         one decoder layer from the checkpoint
    layers.py        layer by layer                         halves.py        a layer's attention and MLP by themselves
    compensated.py   one layer, towards what the original gave
    linears.py       linears that share an input            linear.py        one linear: Hessian, rounding, packing
    feedback.py      GPTQ                                   grid.py          numbers to round to, and their scales
    head.py          last norm, head, KL of the whole       scheme.py        the names of all this in compressed-tensors
    rest.py          what is no layer; the index            shard.py         safetensors, written as it is produced
    work.py          the folder a killed run goes on from   report.py        quantization.json
    asset.py         config.json and other small files      quantizer.py     the one file that knows all stages

A layer is measured with the outputs of the quantized layers before it, and itself unquantized, as llm-compressor's
sequential pipeline does; with compensation each linear is, behind the rounded ones of its own layer too. Activations
are kept on disk in fp32 and read one sample at a time; the original's too, of samples held out or compensated.

Memory, for L parameters in a decoder layer, hidden width h, MLP width m and at most S tokens in a sample, in floats of
4 bytes: L (the layer) plus the larger of 3 h^2 + m^2 + 4 S m (measuring; with compensation h m for 3 h^2) and
3 m^2 + 2 h m (quantizing it; or 2 m^2 + 5 h m); before the first layer the vision tower instead; and some 0.8 GB of
libraries and buffers. A 14B and the largest picture: 4.9 GB and that. Disk: the result, and 2 T h floats for T
calibration tokens; with compensation 6 T h.

llm-compressor is not needed; torch is imported by whatever computes.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from varco_export.progress import SILENT, QuantizeProgress
from varco_export.quantize.options import QuantizeOptions
from varco_runtime.errors import MissingExtraError
from varco_runtime.system.libraries import needs_extra

if TYPE_CHECKING:
    from varco_export.quantize.quantizer import Outcome

__all__ = ["QuantizeOptions", "quantize"]


def quantize(source: str | Path, out: Path, options: QuantizeOptions, progress: QuantizeProgress = SILENT) -> Outcome:
    """Write a quantized checkpoint, continuing where an earlier run of the same command stopped.

    Args:
        source: The checkpoint's folder, or a Hugging Face repository id.
        out: The new checkpoint's folder, made here.
        options: What is asked for.
        progress: Who is told how far the run is.

    Returns:
        The folder, its size and what it was calibrated with.

    Raises:
        UsageError: The options contradict each other or the checkpoint.
        MissingExtraError: A library of the extra `quantize` is not installed.
        CheckpointError: The checkpoint cannot be read, or is quantized already.
        InputError: The calibration folder cannot be used; the message names file and line.
        ExportError: `out` exists, another run is making it, or the disk refuses.
    """
    options.check()
    if any(find_spec(name) is None for name in ("torch", "transformers", "compressed_tensors")):
        raise MissingExtraError("Quantising", "quantize")
    with needs_extra("Quantising", "quantize"):
        from varco_export.quantize import quantizer

    return quantizer.quantize(source, out, options, progress)
